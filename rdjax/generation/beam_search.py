"""Searches for the most probable response with beams."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rdjax.generation.options import Decoding, is_end
from rdjax.models.decoder import Cache, map_pasts

NEVER = -1e9  # the score of an unused beam; finite, as in transformers, so that differences of scores stay numbers


class Beams(NamedTuple):
    """Holds the W open beams of each row, and its W best finished responses so far.

    Attributes:
      open_BWT, open_scores_BW: tokens, and the sum of their log-probabilities.
      finished_BWT, finished_scores_BW: tokens, and the mean of their log-probabilities.
      exists_BW: which of the finished responses exist.
      improvable_B: rows whose open beams can still beat a finished response.
    """

    open_BWT: jax.Array
    open_scores_BW: jax.Array
    finished_BWT: jax.Array
    finished_scores_BW: jax.Array
    exists_BW: jax.Array
    improvable_B: jax.Array


def beam_search(advance, logits_BV, cache, empty_B, eos, decoding: Decoding) -> jax.Array:
    """Generates responses [B, T] as transformers does with early_stopping = False and length_penalty = 1.

    Args:
      advance: (last tokens [B * W], their index in the response, cache) -> (next logits [B * W, V], cache).
      logits_BV: of the first token.
      cache: of the prompts, of one beam.
      empty_B: rows that need no response.
      eos: tokens that end a response.
    """
    (B, V), W = logits_BV.shape, decoding.beams
    extend = functools.partial(_extend, eos=eos, last=decoding.max_new_tokens)

    def unfinished(state):
        index, beams, _ = state
        return (index < decoding.max_new_tokens) & jnp.any(beams.improvable_B)

    def add_token(state):
        index, beams, cache = state
        logits_XV, cache = advance(beams.open_BWT[:, :, index - 1].reshape(B * W), index - 1, cache)
        beams, parents_BW = extend(beams, logits_XV.reshape(B, W, V), index)
        return index + 1, beams, _reorder(cache, parents_BW)

    first = jnp.broadcast_to(logits_BV[:, None], (B, W, V))
    beams, parents_BW = extend(_first_beams(B, eos, empty_B, decoding), first, 0)
    cache = _on_rows(lambda x, axis: jnp.repeat(x, W, axis), cache)
    state = (jnp.ones((), jnp.int32), beams, _reorder(cache, parents_BW))
    return jax.lax.while_loop(unfinished, add_token, state)[1].finished_BWT[:, 0]


def _first_beams(B: int, eos: tuple[int, ...], empty_B: jax.Array, decoding: Decoding) -> Beams:
    """Returns empty responses: one open beam in each row, none finished."""
    W = decoding.beams
    blank_BWT = jnp.full((B, W, decoding.max_new_tokens), eos[0] if eos else 0, jnp.int32)
    never_BW = jnp.full((B, W), NEVER)
    open_scores_BW = never_BW.at[:, 0].set(0.0)
    return Beams(blank_BWT, open_scores_BW, blank_BWT, never_BW, jnp.zeros((B, W), bool), jnp.logical_not(empty_B))


def _extend(
    beams: Beams, logits_BWV: jax.Array, index: int | jax.Array, *, eos: tuple[int, ...], last: int
) -> tuple[Beams, jax.Array]:
    """Extends all beams by token number `index`; returns also which beam each of the open ones continues, [B, W]."""
    B, W, V = logits_BWV.shape
    # Enough candidates that W of them stay open, even if the best continuations of every beam are ends.
    Y = max(2, 1 + len(eos)) * W
    scores_BWV = jax.nn.log_softmax(logits_BWV) + beams.open_scores_BW[..., None]
    scores_BY, candidates_BY = jax.lax.top_k(scores_BWV.reshape(B, W * V), Y)
    parents_BY, tokens_BY = candidates_BY // V, candidates_BY % V
    responses_BYT = jnp.take_along_axis(beams.open_BWT, parents_BY[..., None], axis=1).at[:, :, index].set(tokens_BY)
    ends_BY = is_end(tokens_BY, eos) | (index + 1 == last)
    open_scores_BW, open_BWT, parents_BW = _best(W, scores_BY + NEVER * ends_BY, responses_BYT, parents_BY)
    # An end counts only if it is among the W best candidates, and only while the row can be improved.
    finishes_BY = ends_BY & (jnp.arange(Y) < W)
    means_BY = scores_BY / (index + 1) + NEVER * ~finishes_BY + NEVER * ~beams.improvable_B[:, None]
    finished_scores_BW, finished_BWT, exists_BW = _best(
        W,
        jnp.concatenate([beams.finished_scores_BW, means_BY], axis=1),
        jnp.concatenate([beams.finished_BWT, responses_BYT], axis=1),
        jnp.concatenate([beams.exists_BW, finishes_BY], axis=1),
    )
    worst_BW = jnp.where(exists_BW, finished_scores_BW.min(axis=1, keepdims=True), NEVER)
    improvable_B = beams.improvable_B & jnp.any(open_scores_BW[:, :1] / (index + 1) > worst_BW, axis=1)
    return Beams(open_BWT, open_scores_BW, finished_BWT, finished_scores_BW, exists_BW, improvable_B), parents_BW


def _best(count: int, scores_BY: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the best of each row's candidates: their scores and what belongs to them."""
    scores_BW, at_BW = jax.lax.top_k(scores_BY, count)
    return scores_BW, *(
        jnp.take_along_axis(other, at_BW.reshape(*at_BW.shape, *(1,) * (other.ndim - 2)), axis=1) for other in others
    )


def _reorder(cache: Cache, parents_BW: jax.Array) -> Cache:
    """Gives each beam the keys and values of the beam that it continues."""
    B, W = parents_BW.shape
    rows_X = (jnp.arange(B)[:, None] * W + parents_BW).reshape(B * W)
    return _on_rows(lambda x, axis: jnp.take(x, rows_X, axis), cache)


def _on_rows(change: Callable[[jax.Array, int], jax.Array], cache: Cache) -> Cache:
    """Applies `change` (array, axis of rows) to all that the cache holds of tokens."""
    return cache._replace(pasts=map_pasts(change, cache.pasts))
