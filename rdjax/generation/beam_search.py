"""Searches for the most probable response with beams."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rdjax.generation.options import Decoding, is_end
from rdjax.models.decoder import Cache

NEVER = -1e9  # the score of a beam that is none; finite, as transformers has it, so that differences stay numbers


class Beams(NamedTuple):
    """The K open beams of each row, and the K best finished responses so far.

    Attributes:
      open_BKN, open_scores_BK: new tokens, and the sum of their log-probabilities.
      found_BKN, found_scores_BK, found_BK: likewise, the mean; which of them there are.
      hope_B: whether a row's open beams may still beat its finished ones.
    """

    open_BKN: jax.Array
    open_scores_BK: jax.Array
    found_BKN: jax.Array
    found_scores_BK: jax.Array
    found_BK: jax.Array
    hope_B: jax.Array


def beam_search(follow, logits_BV, cache, empty_B, eos, decoding: Decoding) -> jax.Array:
    """Beam search, as transformers does it with early_stopping = False and length_penalty = 1."""
    B, V = logits_BV.shape
    K, N = decoding.beams, decoding.max_new_tokens
    # Enough that K of them go on, even if every beam's best continuations are ends.
    E = max(2, 1 + len(eos)) * K
    blank_BKN = jnp.full((B, K, N), eos[0] if eos else 0, jnp.int32)
    never_BK = jnp.full((B, K), NEVER)
    beams = Beams(
        blank_BKN, never_BK.at[:, 0].set(0.0), blank_BKN, never_BK, jnp.zeros((B, K), bool), jnp.logical_not(empty_B)
    )

    def best(scores_BE, *others):
        """The K best along the second axis, and what belongs to them."""
        scores_BK, at_BK = jax.lax.top_k(scores_BE, K)
        return scores_BK, *(
            jnp.take_along_axis(other, at_BK.reshape(*at_BK.shape, *(1,) * (other.ndim - 2)), axis=1)
            for other in others
        )

    def extend(beams: Beams, logits_BKV, at):
        """All beams with one token more; which beam each of the open ones comes from."""
        scores_BKV = jax.nn.log_softmax(logits_BKV) + beams.open_scores_BK[..., None]
        scores_BE, chosen_BE = jax.lax.top_k(scores_BKV.reshape(B, K * V), E)
        from_BE, token_BE = chosen_BE // V, chosen_BE % V
        tokens_BEN = jnp.take_along_axis(beams.open_BKN, from_BE[..., None], axis=1).at[:, :, at].set(token_BE)
        ends_BE = is_end(token_BE, eos) | (at + 1 == N)
        open_scores_BK, open_BKN, from_BK = best(scores_BE + NEVER * ends_BE, tokens_BEN, from_BE)
        # Of those that end, only what is among the K best of all is a finding, and only where there was hope.
        finds_BE = ends_BE & (jnp.arange(E) < K)
        means_BE = scores_BE / (at + 1) + NEVER * ~finds_BE + NEVER * ~beams.hope_B[:, None]
        found_scores_BK, found_BKN, found_BK = best(
            jnp.concatenate([beams.found_scores_BK, means_BE], axis=1),
            jnp.concatenate([beams.found_BKN, tokens_BEN], axis=1),
            jnp.concatenate([beams.found_BK, finds_BE], axis=1),
        )
        worst_BK = jnp.where(found_BK, found_scores_BK.min(axis=1, keepdims=True), NEVER)
        hope_B = beams.hope_B & jnp.any(open_scores_BK[:, :1] / (at + 1) > worst_BK, axis=1)
        return Beams(open_BKN, open_scores_BK, found_BKN, found_scores_BK, found_BK, hope_B), from_BK

    def on_rows(change: Callable[[jax.Array, int], jax.Array], cache: Cache) -> Cache:
        return Cache(*jax.tree.map(lambda x_KBSH: change(x_KBSH, -3), (cache.k_LKBSH, cache.v_LKBSH)), cache.index)

    def reorder(cache: Cache, from_BK) -> Cache:
        rows_R = (jnp.arange(B)[:, None] * K + from_BK).reshape(B * K)
        return on_rows(lambda x, axis: jnp.take(x, rows_R, axis), cache)

    def unfinished(carry):
        at, beams, _ = carry
        return (at < N) & jnp.any(beams.hope_B)

    def one(carry):
        at, beams, cache = carry
        logits_RV, cache = follow(beams.open_BKN[:, :, at - 1].reshape(B * K), at - 1, cache)
        beams, from_BK = extend(beams, logits_RV.reshape(B, K, V), at)
        return at + 1, beams, reorder(cache, from_BK)

    beams, from_BK = extend(beams, jnp.broadcast_to(logits_BV[:, None], (B, K, V)), 0)
    cache = on_rows(lambda x, axis: jnp.repeat(x, K, axis), cache)
    first = (jnp.ones((), jnp.int32), beams, reorder(cache, from_BK))
    return jax.lax.while_loop(unfinished, one, first)[1].found_BKN[:, 0]
