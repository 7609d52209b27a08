"""Kernels of causal attention against the plain one, and that against a textbook."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from rdjax.models.attention import RowPrefix, Scoring
from rdjax.models.kernels import (
    choose_kernel,
    cudnn_attention,
    has_cudnn_attention,
    plain_attention,
    splash_attention,
)
from rdjax.parallel.mesh import AXES

SCORINGS = {
    "plain": Scoring(0.125),
    "window": Scoring(0.125, window=70),
    "narrow": Scoring(0.125, window=20),  # tokens far behind the prefix no longer see it
    "capped": Scoring(0.3, softcap=1.5),
    "both": Scoring(0.3, softcap=1.5, window=70),
}


def random_heads(T: int, C: int, H: int, dtype=jnp.float32):
    """Queries, keys and values of 8 rows with 4 query heads on 2 key heads, and a prefix of every two rows."""
    random = np.random.RandomState(T)
    shapes = (2, 8, T, 2, H), (2, 8, T, 1, H), (2, 8, T, 1, H), (2, 4, C, H), (2, 4, C, H)
    return [jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes]


def value_and_gradients(attend, heads):
    def loss(q, k, v, *prefix):
        mixed = attend(q, k, v, RowPrefix(*prefix) if prefix[0].size else None).astype(jnp.float32)
        return jnp.sum(jnp.sin(mixed)), mixed

    return jax.jit(jax.value_and_grad(loss, argnums=range(5), has_aux=True))(*heads)


def assert_same_attention(attend, heads, scoring, tolerance):
    (_, mixed), gradients = value_and_gradients(attend, heads)
    (_, expected), wanted = value_and_gradients(lambda *heads: plain_attention(*heads, scoring, None), heads)
    for ours, theirs in zip([mixed, *gradients], [expected, *wanted], strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=tolerance)


@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
@pytest.mark.parametrize("C", [0, 13])
def test_plain_attention_is_the_textbooks(scoring, C):
    """Token by token in float64: the last `window` of the prefix's keys and a row's own."""
    q, k, v, *prefix = random_heads(40, C, 8)
    mixed = plain_attention(q, k, v, RowPrefix(*prefix) if C else None, scoring, None)
    q, k, v, k_prefix, v_prefix = (np.asarray(x, np.float64) for x in (q, k, v, *prefix))
    cap = 1e9 if scoring.softcap is None else scoring.softcap
    for row, token, head in [(0, 0, 0), (3, 17, 1), (7, 39, 0), (5, 39, 1)]:
        keys = np.concatenate([k_prefix[head, row // 2], k[head, row, : token + 1, 0]])[-(scoring.window or 99) :]
        values = np.concatenate([v_prefix[head, row // 2], v[head, row, : token + 1, 0]])[-(scoring.window or 99) :]
        scores_GS = cap * np.tanh(scoring.scale * q[head, row, token] @ keys.T / cap)
        weights_GS = np.exp(scores_GS) / np.exp(scores_GS).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(mixed[head, row, token], weights_GS @ values, atol=2e-5)


@pytest.mark.parametrize(("T", "C", "sizes"), [(200, 0, None), (130, 48, None), (130, 48, (2, 2, 2))])
@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
def test_splash_attention_equals_the_plain_one(T, C, sizes, scoring):
    """Interpreted on the CPU: lengths that are no multiples of a block, behind a prefix, sharded."""
    mesh = sizes and Mesh(np.array(jax.devices()).reshape(sizes), AXES)

    def splash(*heads):
        return splash_attention(*heads, scoring, mesh, interpret=True)

    assert_same_attention(splash, random_heads(T, C, 64), scoring, 2e-5)


def test_a_soft_cap_keeps_cudnn_away(monkeypatch):
    monkeypatch.setattr("rdjax.models.kernels.has_cudnn_attention", lambda device: True)
    chosen = [choose_kernel(64, 128, np.dtype("float16"), SCORINGS[name], None) for name in ("window", "capped")]
    assert chosen == [cudnn_attention, plain_attention]


@pytest.mark.parametrize(
    ("platform", "capability", "taken"),
    [("gpu", "9.0", True), ("gpu", "8.0", True), ("gpu", "7.5", False), ("gpu", "gfx942", False), ("cpu", None, False)],
)
def test_cudnn_is_for_nvidia_gpus_that_have_it(platform, capability, taken):
    device = types.SimpleNamespace(platform=platform, **({"compute_capability": capability} if capability else {}))
    assert has_cudnn_attention(device) == taken


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("scoring", [SCORINGS["plain"], SCORINGS["window"]], ids=["plain", "window"])
@pytest.mark.parametrize(("T", "C"), [(200, 0), (136, 40)])
def test_cudnn_attention_equals_the_plain_one(T, C, scoring):
    heads = random_heads(T, C, 64, jnp.bfloat16)
    assert_same_attention(lambda *heads: cudnn_attention(*heads, scoring, None), heads, scoring, 2e-2)
