"""Generates one response a few tokens at a time, for someone who watches."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdjax.data.shapes import round_up
from rdjax.generation.decode import PROMPT_BUCKET, read_tokens
from rdjax.generation.options import is_end
from rdjax.models.layers import generation_layout
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, scaled_adapter
from rdjax.parallel.mesh import put, replicated

TOKENS_AT_ONCE = 4


def stream(
    model: LanguageModel, adapter: Adapter | None, scale: float, prompt: Sequence[int], max_new_tokens: int
) -> Iterator[list[int]]:
    """Yields the ids of a greedy response so far, `TOKENS_AT_ONCE` more each time, until its end.

    Args:
      adapter, scale: added to the base; None for the base alone.
      prompt: token ids.
    """
    width = round_up(len(prompt), PROMPT_BUCKET)
    steps = round_up(max_new_tokens, TOKENS_AT_ONCE)
    tokens_BT = np.zeros((1, width), np.int32)
    tokens_BT[0, width - len(prompt) :] = prompt
    scaled, whole = scaled_adapter(adapter, scale), replicated(model.mesh)
    padding_B = put(np.array([width - len(prompt)], np.int32), whole)
    token_B, cache = _read_prompt(model.base, scaled, put(tokens_BT, whole), padding_B, graph=model.graph, steps=steps)
    ids: list[int] = []
    for start in range(0, steps, TOKENS_AT_ONCE):
        new_T, token_B, cache = _continue(
            model.base, scaled, token_B, cache, padding_B, width + start, graph=model.graph, slots=width + steps
        )
        new = np.asarray(new_T)
        ends = np.flatnonzero(np.asarray(is_end(new_T, model.eos_ids)))
        ids += new[: ends[0]].tolist() if ends.size else new.tolist()
        yield ids[:max_new_tokens]
        if ends.size:
            return


@functools.partial(jax.jit, static_argnames=("graph", "steps"))
def _read_prompt(base, adapter, tokens_BT, padding_B, *, graph: nnx.GraphDef, steps: int):
    """Reads a prompt; returns the first new token [B] and the cache."""
    decoder = nnx.merge(graph, generation_layout(base, nnx.merge(graph, base).mesh))
    B, T = tokens_BT.shape
    cache = decoder.empty_cache(B, T + steps)
    logits_BV, cache = read_tokens(decoder, adapter, None, 0, T + steps, tokens_BT, padding_B, jnp.arange(T), cache)
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), cache


@functools.partial(jax.jit, static_argnames=("graph", "slots"), donate_argnames=("cache",))
def _continue(base, adapter, token_B, cache, padding_B, slot, *, graph: nnx.GraphDef, slots: int):
    """Generates `TOKENS_AT_ONCE` tokens from `token_B` on; returns them [T], the next one [B] and the cache."""
    decoder = nnx.merge(graph, generation_layout(base, nnx.merge(graph, base).mesh))

    def add_token(state, index):
        token_B, cache = state
        logits_BV, cache = read_tokens(
            decoder, adapter, None, 0, slots, token_B[:, None], padding_B, (slot + index)[None], cache
        )
        return (jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), cache), token_B[0]

    (token_B, cache), new_T = jax.lax.scan(add_token, (token_B, cache), jnp.arange(TOKENS_AT_ONCE))
    return new_T, token_B, cache
