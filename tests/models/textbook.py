"""A decoder as a textbook writes it, in numpy and float64: one sequence, layer by layer, no cache and no kernels."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rdjax.models.config import DecoderConfig, RopeConfig
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
        elif "embed" not in name:
            noise = noise * leaf.shape[-2] ** -0.5
        return jnp.asarray(noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(one, abstract_params(config, jnp.float32)[1])


def forward(config: DecoderConfig, params: dict[str, Any], tokens_T: np.ndarray) -> States:
    """The decoder on one sequence."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x_TD, inputs = config.embedding_scale * params["embed_tokens"][tokens_T], []
    for layer in range(config.layers):
        inputs.append(x_TD)
        block = {name: of_layer(config, name, part, layer) for name, part in params["layers"].items()}
        mixer = {"self_attn": attention, "linear_attn": delta_net}[config.kind_of(layer).mixer]
        attended_TD = mixer(config, block, normed(config, block, "attention_norm", x_TD), layer)
        x_TD = x_TD + config.residual_scale * normed(config, block, "attention_out_norm", attended_TD)
        fed_TD = mlp(config, block["mlp"], normed(config, block, "mlp_norm", x_TD))
        x_TD = x_TD + config.residual_scale * normed(config, block, "mlp_out_norm", fed_TD)
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


def mlp(config: DecoderConfig, holder: dict[str, Any], x_TD: np.ndarray) -> np.ndarray:
    gate_TF = linear(holder, "gate_proj", x_TD)
    if config.activation == "silu":
        gate_TF = gate_TF / (1 + np.exp(-gate_TF))
    else:
        gate_TF = 0.5 * gate_TF * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate_TF + 0.044715 * gate_TF**3)))
    return linear(holder, "down_proj", gate_TF * linear(holder, "up_proj", x_TD))


def attention(config: DecoderConfig, block: dict[str, Any], x_TD: np.ndarray, layer: int) -> np.ndarray:
    """Head by head and query by query."""
    holder, kind, (T, _), group = (
        block["self_attn"],
        config.pattern[layer % len(config.pattern)],
        x_TD.shape,
        config.heads // config.kv_heads,
    )
    q_TNH, k_TKH, v_TKH = (heads(config, holder, name, x_TD) for name in "qkv")
    if config.attention_gate:
        gate_TNH = linear(holder, "q_proj", x_TD).reshape(T, config.heads, -1)[..., config.head_width :]
    if kind.rope is not None:
        q_TNH, k_TKH = rotated(kind.rope, q_TNH), rotated(kind.rope, k_TKH)
        periods_T = np.arange(len(q_TNH)) // kind.rope.query_period
        q_TNH = q_TNH * (1 + kind.rope.query_growth * np.log(1 + periods_T))[:, None, None]
    scale = 1 / np.sqrt(config.head_width) if config.score_scale is None else config.score_scale
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


def delta_net(config: DecoderConfig, block: dict[str, Any], x_TD: np.ndarray, layer: int) -> np.ndarray:
    """Value head by value head and token by token."""
    holder, sizes, (T, _) = block["linear_attn"], config.delta_net, x_TD.shape
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


def heads(config: DecoderConfig, holder: dict[str, Any], name: str, x_TD: np.ndarray) -> np.ndarray:
    """Queries, keys or values, normed as the config says."""
    y = linear(holder, f"{name}_proj", x_TD)
    if name == "q" and config.attention_gate:
        y = y.reshape(len(x_TD), config.heads, -1)[..., : config.head_width].reshape(len(x_TD), -1)
    if config.qk_norm == "whole":
        y = normed(config, holder, f"{name}_norm", y)
    y = y.reshape(len(x_TD), -1, config.head_width)
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
