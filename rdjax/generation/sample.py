"""Chooses one token after the other, greedily or by drawing."""

import jax
import jax.numpy as jnp

from rdjax.generation.options import Decoding, is_end

BISECTIONS = 32  # probabilities that differ by less than 2^-32 of the highest one count as equal


def sample(advance, logits_BV, cache, done_B, ids_B, seed, eos, decoding: Decoding) -> jax.Array:
    """Generates the tokens [B, T] of responses until every row has ended; T is `max_new_tokens`.

    Args:
      advance: (last tokens [B], their index in the response, cache) -> (next logits [B, V], cache).
      logits_BV: of the first token.
      cache: of the prompts.
      done_B: rows that need no response.
      ids_B: a number for each prompt; with `seed` it determines the prompt's draws.
      eos: tokens that end a response.
    """
    B, T = logits_BV.shape[0], decoding.max_new_tokens

    def choose(logits_BV, index):
        if not decoding.temperature:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        keys_B = jax.vmap(lambda number: _token_key(seed, number, index))(ids_B)
        logits_BV = truncated(logits_BV / decoding.temperature, decoding.top_k, decoding.top_p)
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)

    def unfinished(state):
        index, _, _, _, done_B = state
        return (index < T) & ~jnp.all(done_B)

    def add_token(state):
        index, tokens_B, cache, response_BT, done_B = state
        response_BT = response_BT.at[:, index].set(tokens_B)
        done_B = done_B | is_end(tokens_B, eos)
        logits_BV, cache = advance(tokens_B, index, cache)
        return index + 1, choose(logits_BV, index + 1), cache, response_BT, done_B

    index = jnp.zeros((), jnp.int32)
    state = (index, choose(logits_BV, index), cache, jnp.zeros((B, T), jnp.int32), done_B)
    return jax.lax.while_loop(unfinished, add_token, state)[3]


def _token_key(seed, number, index) -> jax.Array:
    """Returns the key for one token of one prompt's response."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), index)


def truncated(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Sets logits to -inf, except the `top_k` most likely ones, and of these the fewest that reach `top_p`.

    The most likely token always stays (Holtzman et al. 2020, arXiv 1904.09751; the order is transformers').
    """
    V = logits_BV.shape[-1]
    if 0 < top_k < V:
        least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if top_p < 1:
        relative_BV = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
        logits_BV = jnp.where(relative_BV > nucleus_bound(relative_BV, top_p), logits_BV, -jnp.inf)
    return logits_BV


def nucleus_bound(relative_BV: jax.Array, top_p: float) -> jax.Array:
    """Returns the highest bound [B, 1] above which the tokens' probabilities sum to `top_p` or more, by bisection.

    Sorting a vocabulary of 49,152 takes longer on a CPU than reading a token does: 0.5 s for 32 rows, this 0.03 s.

    Args:
      relative_BV: the tokens' probabilities over that of the most likely one.
    """
    # The most likely token has 1 and always stays.
    wanted_B1 = jnp.maximum(top_p * jnp.sum(relative_BV, axis=-1, keepdims=True), 1.0)

    def halve(_, bounds):
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 + high_B1) / 2
        above_B1 = jnp.sum(jnp.where(relative_BV > middle_B1, relative_BV, 0.0), axis=-1, keepdims=True)
        enough_B1 = above_B1 >= wanted_B1
        return jnp.where(enough_B1, middle_B1, low_B1), jnp.where(enough_B1, high_B1, middle_B1)

    return jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(wanted_B1), jnp.ones_like(wanted_B1)))[0]
