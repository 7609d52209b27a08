"""Attention, its masks and rotary positions against independent formulas."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from rdjax.models.attention import (
    Before,
    attention,
    cudnn_attention,
    has_cudnn_attention,
    heads_first,
    plain_attention,
    rope_angles,
    rope_frequencies_H,
    rotate,
    rows_first,
    shared_prefix_mask,
    splash_attention,
)
from rdjax.models.config import RopeConfig, decoder_config_from_hf
from rdjax.parallel.mesh import AXES
from tests import tiny

B, T, S, N, K, H = 2, 5, 7, 6, 2, 8


@pytest.fixture
def qkv():
    random = np.random.RandomState(0)
    return tuple(jnp.asarray(3 * random.standard_normal(s), jnp.float32) for s in [(B, T, N, H)] + 2 * [(B, S, K, H)])


@pytest.fixture
def mask_BTS():
    mask = np.random.RandomState(1).random_sample((B, T, S)) < 0.5
    mask[..., 0] = True  # every query sees a key
    return jnp.asarray(mask)


def attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, shared: int = 0):
    """`attention` of arrays as jax.nn has them; the first `shared` keys, the same in all rows, stand before them."""
    k_KBSH, v_KBSH = (heads_first(x)[:, :, :, 0] for x in (k_BSKH, v_BSKH))
    before = Before(k_KBSH[:, :1, :shared], v_KBSH[:, :1, :shared]) if shared else None
    q_KBTGH = heads_first(q_BTNH, k_BSKH.shape[2])
    own = k_KBSH[:, :, shared:], v_KBSH[:, :, shared:], mask_BTS[..., shared:]
    return rows_first(attention(q_KBTGH, *own, before))


def softmax_attention(q_BTNH, k_BSNH, v_BSNH, mask_BTS):
    """The textbook, one query head and key head each, in float64."""
    scores = np.einsum("btnh,bsnh->bnts", *(np.asarray(x, np.float64) for x in (q_BTNH, k_BSNH))) / np.sqrt(H)
    weights = np.where(np.asarray(mask_BTS)[:, None], np.exp(scores), 0)
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), np.asarray(v_BSNH, np.float64))


def test_grouped_queries_equal_repeated_key_heads(qkv, mask_BTS):
    q, k, v = qkv
    repeated = [jnp.repeat(x, N // K, axis=2) for x in (k, v)]
    np.testing.assert_allclose(attend(q, k, v, mask_BTS), softmax_attention(q, *repeated, mask_BTS), atol=2e-5)


def test_equals_jax_nn(qkv, mask_BTS):
    q, k, v = qkv
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask_BTS[:, None])
    np.testing.assert_allclose(attend(q, k, v, mask_BTS), expected, atol=2e-5)


@pytest.mark.parametrize("shared", [0, 3])
def test_gradients_equal_jax_nn(qkv, mask_BTS, shared):
    """The softmax is written out by hand here, so its derivative is checked too; also where rows share keys."""
    q, k, v = qkv
    k, v = (x.at[:, :shared].set(x[:1, :shared]) for x in (k, v))
    qkv, mask_BTS = (q, k, v), mask_BTS.at[..., :shared].set(True)
    weight = jnp.asarray(np.random.RandomState(2).standard_normal((B, T, N, H)), jnp.float32)

    def gradient(attend):
        def loss(q, k, v):
            # What rows share is one variable.
            k, v = (x.at[1:, :shared].set(x[:1, :shared]) for x in (k, v))
            return (attend(q, k, v) * weight).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*qkv)

    mine = gradient(lambda q, k, v: attend(q, k, v, mask_BTS, shared))
    expected = gradient(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask_BTS[:, None]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), mine, expected)


def test_large_scores_stay_finite(qkv, mask_BTS):
    q, k, v = qkv
    out = attend(1e4 * q, k, v, mask_BTS)
    assert jnp.isfinite(out).all()
    assert jnp.abs(out).max() <= jnp.abs(v).max() + 1e-3


def test_bfloat16_scores_keep_float32_resolution():
    """Scores of 256 and 256.125 are one number in bfloat16, whose step is 2 there."""
    q = jnp.asarray([32, 1, 0, 0], jnp.bfloat16).reshape(1, 1, 1, 4)
    k = jnp.asarray([[16, 0, 0, 0], [16, 0.25, 0, 0]], jnp.bfloat16).reshape(1, 2, 1, 4)
    v = jnp.asarray([[0] * 4, [1] * 4], jnp.bfloat16).reshape(1, 2, 1, 4)
    out = attend(q, k, v, jnp.ones((1, 1, 2), bool))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1 / (1 + np.exp(-0.125)), rtol=2**-8)


@pytest.mark.parametrize(
    ("make_mask", "segments", "rows"),
    [
        (tiny.causal_mask, [1, 1, 2, 2, 0, 0], ["100000", "110000", "001000", "001100", "000010", "000001"]),
        (tiny.causal_mask, [0, 0, 1, 1], ["1000", "0100", "0010", "0011"]),
        (shared_prefix_mask, [1, 1, 2, 3, 3, 0], ["100000", "110000", "111000", "110100", "110110", None]),
    ],
)
def test_masks_by_hand(make_mask, segments, rows):
    mask_TT = np.asarray(make_mask(jnp.asarray([segments])))[0]
    for seen, row in zip(mask_TT, rows, strict=True):
        if row is None:  # padding: what it sees is of no interest, as long as it sees something
            assert seen.any()
        else:
            assert "".join(map(str, seen.astype(int))) == row


def random_heads(T: int, C: int, H: int, dtype=jnp.float32):
    """Queries, keys and values of 8 rows with 4 query heads on 2 key heads, and what stands before every two rows."""
    random = np.random.RandomState(T)
    shapes = (2, 8, T, 2, H), (2, 8, T, 1, H), (2, 8, T, 1, H), (2, 4, C, H), (2, 4, C, H)
    return [jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes]


def value_and_gradients(attend, heads):
    def loss(q, k, v, *before):
        mixed = attend(q, k, v, Before(*before) if before[0].size else None).astype(jnp.float32)
        return jnp.sum(jnp.sin(mixed)), mixed

    return jax.jit(jax.value_and_grad(loss, argnums=range(5), has_aux=True))(*heads)


def assert_same_attention(attend, heads, tolerance):
    (_, mixed), gradients = value_and_gradients(attend, heads)
    (_, expected), wanted = value_and_gradients(lambda *heads: plain_attention(*heads, None), heads)
    for ours, theirs in zip([mixed, *gradients], [expected, *wanted], strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=tolerance)


@pytest.mark.parametrize(("T", "C"), [(200, 0), (130, 48)])
@pytest.mark.parametrize("sizes", [None, (2, 2, 2)])
def test_splash_attention_equals_the_plain_one(T, C, sizes):
    """On the CPU, as its interpreter computes it: lengths that are no blocks, behind a prefix, sharded."""
    mesh = sizes and Mesh(np.array(jax.devices()).reshape(sizes), AXES)
    assert_same_attention(lambda *heads: splash_attention(*heads, mesh, interpret=True), random_heads(T, C, 64), 2e-5)


@pytest.mark.parametrize(
    ("platform", "capability", "taken"),
    [("gpu", "9.0", True), ("gpu", "8.0", True), ("gpu", "7.5", False), ("gpu", "gfx942", False), ("cpu", None, False)],
)
def test_cudnn_is_for_nvidia_gpus_that_have_it(platform, capability, taken):
    device = types.SimpleNamespace(platform=platform, **({"compute_capability": capability} if capability else {}))
    assert has_cudnn_attention(device) == taken


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("T", "C"), [(200, 0), (136, 40)])
def test_cudnn_attention_equals_the_plain_one(T, C):
    assert_same_attention(lambda *heads: cudnn_attention(*heads, None), random_heads(T, C, 64, jnp.bfloat16), 2e-2)


def rotated_as_complex(x_TH, positions_T, frequencies):
    """Rotary embedding as multiplication by exp(i * position * frequency), in float64."""
    half = x_TH.shape[-1] // 2
    z = (x_TH[:, :half] + 1j * x_TH[:, half:]) * np.exp(1j * positions_T[:, None] * frequencies)
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-3), (jnp.bfloat16, 2**-7)])
def test_rotation_at_far_positions(dtype, tolerance):
    """In bfloat16 too: position 4095 is not a bfloat16 number, nor would its angle be near."""
    positions = np.array([0, 1, 63, 511, 2047, 4095])
    x_TH = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (len(positions), 16)), dtype)
    angles = rope_angles(RopeConfig(), 16, jnp.asarray(positions)[None])
    turned = rotate(x_TH[None, :, None], *angles)
    assert turned.dtype == dtype
    expected = rotated_as_complex(np.asarray(x_TH, np.float64), positions, 10000.0 ** -(np.arange(8) / 8))
    np.testing.assert_allclose(turned[0, :, 0].astype(jnp.float32), expected, atol=tolerance)


def test_llama3_frequencies_in_three_bands():
    rope = decoder_config_from_hf(tiny.LLAMA3, "here").rope
    plain = 10000.0 ** -(np.arange(8) / 8)
    wavelengths = 2 * np.pi / plain
    scaled = rope_frequencies_H(rope, 16)
    short, long = wavelengths < 32 / 4, wavelengths > 32 / 1
    between = ~short & ~long
    assert short.any() and long.any() and between.any()
    np.testing.assert_allclose(scaled[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    smooth = (32 / wavelengths[between] - 1) / (4 - 1)
    np.testing.assert_allclose(scaled[between], plain[between] * (smooth + (1 - smooth) / 8), rtol=1e-6)


def test_the_gradient_of_a_rotation_turns_back():
    """A linear map: <g, R x> = <R' g, x>, and R' R x = x."""
    random = np.random.RandomState(0)
    x, g = (jnp.asarray(random.standard_normal((B, T, N, H)), jnp.float32) for _ in range(2))
    angles = rope_angles(RopeConfig(), H, jnp.asarray(random.randint(0, 50, (B, T))))
    turned, turn_back = jax.vjp(lambda x: rotate(x, *angles), x)
    np.testing.assert_allclose(jnp.vdot(g, turned), jnp.vdot(*turn_back(g), x), rtol=1e-5)
    np.testing.assert_allclose(turn_back(turned)[0], x, atol=1e-5)
