"""The key-value cache: prefill and one token at a time give what one pass over everything gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rdjax.models.decoder import Cache
from tests import tiny

TOLERANCE = 2e-5
SLOTS = 16


@pytest.fixture(scope="module", params=["llama3", "biased"])
def decoder(request):
    return tiny.random_decoder(tiny.CONFIGS[request.param])


def empty_cache(config, rows: int) -> Cache:
    """Filled with nonsense, so that a look at an unwritten slot shows."""
    shape = (config.layers, config.kv_heads, rows, SLOTS, config.head_width)
    keys_values = np.full(shape, 1e3, np.float32), np.full(shape, 1e3, np.float32)
    return Cache({"self_attn": keys_values}, np.zeros((), np.int32))


def run_in_chunks(decoder, tokens_BT, real_BT, chunks: list[int]):
    """Feeds `chunks` tokens at a time; slot s of the cache holds token s. Returns all outputs and the cache."""
    graph, params = nnx.split(decoder)
    B, T = tokens_BT.shape
    positions_BT = np.maximum(np.cumsum(real_BT, axis=1) - 1, 0)
    real_BS = np.pad(real_BT, ((0, 0), (0, SLOTS - T)))

    @jax.jit
    def step(tokens, positions, mask, cache):
        at_BQ = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return nnx.merge(graph, params)(tokens, positions, mask, cache=cache, inputs_at_BQ=at_BQ)

    cache, outputs, start = empty_cache(decoder.config, B), [], 0
    for length in chunks:
        part = slice(start, start + length)
        causal_TS = np.arange(SLOTS) <= np.arange(start, start + length)[:, None]
        mask_BTS = causal_TS & real_BS[:, None] | np.eye(T, SLOTS, dtype=bool)[part]
        outputs.append(jax.device_get(step(tokens_BT[:, part], positions_BT[:, part], mask_BTS, cache)))
        cache, start = outputs[-1].cache, start + length
    final_BTD = np.concatenate([out.final_BPD for out in outputs], axis=1)
    inputs_LBTD = np.concatenate([out.inputs_LBQD for out in outputs], axis=2)
    return final_BTD, inputs_LBTD, cache


def test_chunks_equal_one_pass(decoder):
    tokens_BT = tiny.random_tokens(2, 12)
    final_BTD, inputs_LBTD, cache = run_in_chunks(decoder, tokens_BT, np.ones((2, 12), bool), [6, 4, 1, 1])
    whole = tiny.forward(decoder, tokens_BT)
    np.testing.assert_allclose(final_BTD, whole.final_BPD, atol=TOLERANCE)
    np.testing.assert_allclose(inputs_LBTD, whole.inputs_LBQD, atol=TOLERANCE)
    assert cache.index == 12
    assert (np.stack(cache.pasts["self_attn"][0])[:, :, :, 12:] == 1e3).all()


def test_left_padded_rows_equal_each_row_alone():
    """Prompts of different lengths end at the same slot, and then grow together."""
    decoder = tiny.random_decoder(tiny.LLAMA3)
    pads = [0, 3, 6]
    tokens_BT = tiny.random_tokens(3, 11)
    real_BT = np.arange(11) >= np.array(pads)[:, None]
    final_BTD, _, _ = run_in_chunks(decoder, tokens_BT, real_BT, [7, 1, 1, 1, 1])
    assert np.isfinite(final_BTD).all()
    whole = tiny.forward(decoder, *tiny.pad_rows([tokens_BT[row, pad:] for row, pad in enumerate(pads)]))
    for row, pad in enumerate(pads):
        np.testing.assert_allclose(final_BTD[row, pad:], whole.final_BPD[row, : 11 - pad], atol=TOLERANCE)
