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
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        attended_TD = attention(config, block["self_attn"], normed(config, block, "attention_norm", x_TD), layer)
        x_TD = x_TD + config.residual_scale * normed(config, block, "attention_out_norm", attended_TD)
        fed_TD = mlp(config, block["mlp"], normed(config, block, "mlp_norm", x_TD))
        x_TD = x_TD + config.residual_scale * normed(config, block, "mlp_out_norm", fed_TD)
    final_TD = normed(config, params, "norm", x_TD)
    head_DV = params["embed_tokens"].T if config.tied_embeddings else params["lm_head"]["kernel"]
    return States(np.stack(inputs), final_TD, cap(config.logit_scale * (final_TD @ head_DV), config.logit_softcap))


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


def attention(config: DecoderConfig, holder: dict[str, Any], x_TD: np.ndarray, layer: int) -> np.ndarray:
    """Head by head and query by query."""
    kind, (T, _), group = config.pattern[layer % len(config.pattern)], x_TD.shape, config.heads // config.kv_heads
    q_TNH, k_TKH, v_TKH = (heads(config, holder, name, x_TD) for name in "qkv")
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
    return linear(holder, "o_proj", mixed_TNH.reshape(T, -1))


def heads(config: DecoderConfig, holder: dict[str, Any], name: str, x_TD: np.ndarray) -> np.ndarray:
    """Queries, keys or values, normed as the config says."""
    y = linear(holder, f"{name}_proj", x_TD)
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
