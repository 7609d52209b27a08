"""Attention and its masks against independent formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdjax.models.attention import (
    RowPrefix,
    Scoring,
    attention,
    causal_mask,
    heads_first,
    rows_first,
    shared_prefix_mask,
)
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


def attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, shared: int = 0, softcap: float | None = None):
    """Calls `attention` with arrays as jax.nn has them; the first `shared` keys, equal in all rows, are its prefix."""
    k_KBSH, v_KBSH = (heads_first(x)[:, :, :, 0] for x in (k_BSKH, v_BSKH))
    prefix = RowPrefix(k_KBSH[:, :1, :shared], v_KBSH[:, :1, :shared]) if shared else None
    q_KBTGH = heads_first(q_BTNH, k_BSKH.shape[2])
    rest = k_KBSH[:, :, shared:], v_KBSH[:, :, shared:], mask_BTS[..., shared:]
    scoring = Scoring(q_BTNH.shape[-1] ** -0.5, softcap)
    return rows_first(attention(q_KBTGH, *rest, scoring, prefix, mask_BTS[..., :shared] if shared else None))


def softmax_attention(q_BTNH, k_BSNH, v_BSNH, mask_BTS, softcap: float = 1e6):
    """The textbook, one query head and key head each, in float64."""
    scores = np.einsum("btnh,bsnh->bnts", *(np.asarray(x, np.float64) for x in (q_BTNH, k_BSNH))) / np.sqrt(H)
    scores = softcap * np.tanh(scores / softcap)
    weights = np.where(np.asarray(mask_BTS)[:, None], np.exp(scores), 0)
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), np.asarray(v_BSNH, np.float64))


def test_grouped_queries_equal_repeated_key_heads(qkv, mask_BTS):
    q, k, v = qkv
    repeated = [jnp.repeat(x, N // K, axis=2) for x in (k, v)]
    np.testing.assert_allclose(attend(q, k, v, mask_BTS), softmax_attention(q, *repeated, mask_BTS), atol=2e-5)


@pytest.mark.parametrize("shared", [0, 3])
def test_soft_caps_bound_the_scores(qkv, mask_BTS, shared):
    """Also where rows share keys, of which a token sees some."""
    q, k, v = qkv
    k, v = (x.at[:, :shared].set(x[:1, :shared]) for x in (k, v))
    repeated = [jnp.repeat(x, N // K, axis=2) for x in (k, v)]
    capped = attend(q, k, v, mask_BTS, shared, softcap=2.0)
    np.testing.assert_allclose(capped, softmax_attention(q, *repeated, mask_BTS, softcap=2.0), atol=2e-5)
    assert np.abs(capped - attend(q, k, v, mask_BTS, shared)).max() > 0.1


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


def test_causal_masks_by_hand():
    assert causal_mask(3, 5)[0].astype(int).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert causal_mask(3, 5, window=2)[0].astype(int).tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert causal_mask(2, 2, window=9)[0].astype(int).tolist() == [[1, 0], [1, 1]]
