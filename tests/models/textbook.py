"""A decoder as a textbook writes it, in numpy and float64: one sequence, layer by layer, no cache and no kernels."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rdjax.models.config import MLPS, SHARING, DecoderConfig, RopeConfig
from rdjax.models.weights import abstract_params


class States(NamedTuple):
    inputs_LTD: np.ndarray
    final_TD: np.ndarray
    logits_TV: np.ndarray


def random_params(config: DecoderConfig, seed: int = 0) -> dict[str, Any]:
    """Parameters that are large enough for every switch to show."""
    random = np.random.RandomState(seed)

    def one(path, leaf) -> np.ndarray:
        name, noise = jax.tree_util.keystr(path), random.standard_normal(leaf.shape)
        if "norm" in name:
            noise = 0.3 * noise + (config.norm != "one_plus_weight")
        elif "bias" in name:
            noise = 0.3 * noise
        elif "scale" in name:
            noise = 1 + 0.3 * noise
        elif "embed_tokens" not in name and "table" not in name:
            noise = noise * leaf.shape[-2] ** -0.5
        return jnp.asarray(noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(one, abstract_params(config, jnp.float32)[1])


def forward(config: DecoderConfig, params: dict[str, Any], tokens_T: np.ndarray) -> States:
    """The decoder on one sequence."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x_TD, inputs, made = config.embedding_scale * params["embed_tokens"][tokens_T], [], {}
    embedded_TD = x_TD
    for layer in range(config.layers):
        inputs.append(x_TD)
        block = {name: of_layer(config, name, part, layer) for name, part in params["layers"].items()}
        read_TD = normed(config, block, "attention_norm", x_TD)
        if config.kind_of(layer).mixer == "linear_attn":
            attended_TD = delta_net(config, block["linear_attn"], read_TD)
        else:
            attended_TD = attention(config, block, read_TD, layer, made)
        x_TD = x_TD + config.residual_scale * normed(config, block, "attention_out_norm", attended_TD)
        fed_TD = mlp(
            config, next(block[name] for name in MLPS if block.get(name)), normed(config, block, "mlp_norm", x_TD)
        )
        x_TD = x_TD + config.residual_scale * normed(config, block, "mlp_out_norm", fed_TD)
        if config.layer_embeddings is not None:
            added_TJ = layer_embedding(config, params["layer_embeddings"], tokens_T, embedded_TD, layer)
            x_TD = x_TD + add_embedding(config, block["layer_embedding"], x_TD, added_TJ)
        if config.layer_scale:
            x_TD = x_TD * block["scale"]
    final_TD = normed(config, params, "norm", x_TD)
    head_DV = params["embed_tokens"].T if config.tied_embeddings else params["lm_head"]["kernel"]
    return States(np.stack(inputs), final_TD, cap(config.logit_scale * (final_TD @ head_DV), config.logit_softcap))


def of_layer(config: DecoderConfig, name: str, part: Any, layer: int) -> Any:
    """A part of a block in one layer; None where the layer does not have it."""
    layers = config.layers_of(name)
    return jax.tree.map(lambda leaf: leaf[layers.index(layer)], part) if layer in layers else None


def normed(config: DecoderConfig, holder: dict[str, Any], name: str, x: np.ndarray) -> np.ndarray:
    """The norm of that name, where there is one."""
    if name not in holder:
        return x
    weight = holder[name]["weight"] + (config.norm == "one_plus_weight")
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_epsilon) * weight


def linear(holder: dict[str, Any], name: str, x: np.ndarray) -> np.ndarray:
    return x @ holder[name]["kernel"] + holder[name].get("bias", 0.0)


def activated(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    if config.activation == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(config: DecoderConfig, holder: dict[str, Any], x_TD: np.ndarray) -> np.ndarray:
    gate_TF = activated(config, linear(holder, "gate_proj", x_TD))
    return linear(holder, "down_proj", gate_TF * linear(holder, "up_proj", x_TD))


def layer_embedding(config: DecoderConfig, holder: dict[str, Any], tokens_T, x_TD: np.ndarray, layer: int):
    """Returns what a layer's embeddings have for the tokens: the sum of two parts, over the square root of 2."""
    width = config.layer_embeddings.width
    columns = slice(layer * width, (layer + 1) * width)
    projected_TJ = linear(holder, "projection", x_TD)[:, columns] / np.sqrt(config.width)
    own_TJ = holder["table"][tokens_T][:, columns] * np.sqrt(width)
    return (normed(config, holder, "norm", projected_TJ) + own_TJ) / np.sqrt(2)


def add_embedding(config: DecoderConfig, holder: dict[str, Any], x_TD: np.ndarray, added_TJ: np.ndarray) -> np.ndarray:
    gated_TJ = activated(config, linear(holder, "gate", x_TD)) * added_TJ
    return normed(config, holder, "norm", linear(holder, "projection", gated_TJ))


def attention(config: DecoderConfig, block: dict[str, Any], x_TD: np.ndarray, layer: int, made: dict) -> np.ndarray:
    """Head by head and query by query; `made` has the last keys and values of each mixer."""
    kind, (T, _) = config.kind_of(layer), x_TD.shape
    holder, sizes = block[kind.mixer], config.attention_sizes(kind.mixer)
    group = config.heads // sizes.kv_heads
    q_TNH = heads(config, holder, "q", x_TD, sizes.head_width)
    if config.attention_gate:
        gate_TNH = linear(holder, "q_proj", x_TD).reshape(T, config.heads, -1)[..., config.head_width :]
    if kind.mixer not in SHARING:
        k_TKH = heads(config, holder, "k", x_TD, sizes.head_width)
        v_TKH = linear(holder, "k_proj" if sizes.keys_as_values else "v_proj", x_TD).reshape(T, -1, sizes.head_width)
        if config.value_norm:
            v_TKH = v_TKH / np.sqrt((v_TKH**2).mean(axis=-1, keepdims=True) + config.norm_epsilon)
        made[kind.mixer] = k_TKH if kind.rope is None else rotated(kind.rope, k_TKH), v_TKH
    k_TKH, v_TKH = made[SHARING.get(kind.mixer, kind.mixer)]
    if kind.rope is not None:
        q_TNH = rotated(kind.rope, q_TNH)
        periods_T = np.arange(len(q_TNH)) // kind.rope.query_period
        q_TNH = q_TNH * (1 + kind.rope.query_growth * np.log(1 + periods_T))[:, None, None]
    scale = 1 / np.sqrt(sizes.head_width) if config.score_scale is None else config.score_scale
    mixed_TNH = np.zeros_like(q_TNH)
    for token in range(T):
        first = 0 if kind.window is None else max(0, token + 1 - kind.window)
        for head in range(config.heads):
            keys, values = (x[first : token + 1, head // group] for x in (k_TKH, v_TKH))
            weights = np.exp(cap(scale * keys @ q_TNH[token, head], config.score_softcap))
            mixed_TNH[token, head] = weights / weights.sum() @ values
    if config.attention_gate:
        mixed_TNH = mixed_TNH * sigmoid(gate_TNH)
    return linear(holder, "o_proj", mixed_TNH.reshape(T, -1))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def delta_net(config: DecoderConfig, holder: dict[str, Any], x_TD: np.ndarray) -> np.ndarray:
    """Value head by value head and token by token."""
    sizes, (T, _) = config.delta_net, x_TD.shape
    taps_OS, raw_TO = holder["conv_taps"][:, 0], linear(holder, "in_proj_qkv", x_TD)
    read_TO = np.zeros_like(raw_TO)
    for token in range(T):
        for back in range(min(sizes.taps, token + 1)):
            read_TO[token] += taps_OS[:, -1 - back] * raw_TO[token - back]
    read_TO = read_TO * sigmoid(read_TO)
    q_TKH, k_TKH = (part.reshape(T, sizes.key_heads, -1) for part in np.split(read_TO[:, : 2 * sizes.keys], 2, axis=1))
    q_TKH, k_TKH = (x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-6) for x in (q_TKH, k_TKH))
    v_TIJ = read_TO[:, 2 * sizes.keys :].reshape(T, sizes.value_heads, -1)
    step_TI = np.log1p(np.exp(linear(holder, "in_proj_a", x_TD) + holder["dt_bias"]))
    kept_TI, strength_TI = np.exp(-np.exp(holder["a_log"]) * step_TI), sigmoid(linear(holder, "in_proj_b", x_TD))
    mixed_TIJ = np.zeros_like(v_TIJ)
    for head in range(sizes.value_heads):
        memory_HJ, key_head = (
            np.zeros((sizes.key_width, sizes.value_width)),
            head * sizes.key_heads // sizes.value_heads,
        )
        for token in range(T):
            key, value = k_TKH[token, key_head], v_TIJ[token, head]
            memory_HJ = kept_TI[token, head] * memory_HJ
            memory_HJ = memory_HJ + strength_TI[token, head] * np.outer(key, value - key @ memory_HJ)
            mixed_TIJ[token, head] = q_TKH[token, key_head] / np.sqrt(sizes.key_width) @ memory_HJ
    mixed_TIJ = mixed_TIJ / np.sqrt((mixed_TIJ**2).mean(axis=-1, keepdims=True) + config.norm_epsilon)
    gate_TX = linear(holder, "in_proj_z", x_TD)
    mixed_TX = (mixed_TIJ * holder["norm"]["weight"]).reshape(T, -1)
    return linear(holder, "out_proj", mixed_TX * gate_TX * sigmoid(gate_TX))


def heads(config: DecoderConfig, holder: dict[str, Any], name: str, x_TD: np.ndarray, width: int) -> np.ndarray:
    """Queries or keys, normed as the config says."""
    y = linear(holder, f"{name}_proj", x_TD)
    if name == "q" and config.attention_gate:
        y = y.reshape(len(x_TD), config.heads, -1)[..., :width].reshape(len(x_TD), -1)
    if config.qk_norm == "whole":
        y = normed(config, holder, f"{name}_norm", y)
    y = y.reshape(len(x_TD), -1, width)
    return normed(config, holder, f"{name}_norm", y) if config.qk_norm == "head" else y


def rotated(rope: RopeConfig, x_TNH: np.ndarray) -> np.ndarray:
    """The rotated part of each head as complex numbers times exp(i * position * frequency)."""
    half = len(rope.frequencies)
    first, second = np.arange(half), np.arange(half, 2 * half)
    if rope.interleaved:
        first, second = 2 * first, 2 * first + 1
    turned = x_TNH[..., first] + 1j * x_TNH[..., second]
    turned = rope.amplitude * turned * np.exp(1j * np.arange(len(x_TNH))[:, None, None] * np.array(rope.frequencies))
    out_TNH = x_TNH.copy()
    out_TNH[..., first], out_TNH[..., second] = turned.real, turned.imag
    return out_TNH


def cap(x: np.ndarray, softcap: float | None) -> np.ndarray:
    return x if softcap is None else softcap * np.tanh(x / softcap)
