"""Chooses one token after the other, greedily or by drawing."""

import jax
import jax.numpy as jnp

from rdjax.generation.options import Decoding, is_end


def sample(follow, logits_BV, cache, done_B, numbers_B, seed, eos, decoding: Decoding) -> jax.Array:
    """Token by token, greedily or drawn, until every row has ended."""
    B, N = logits_BV.shape[0], decoding.max_new_tokens

    def choose(logits_BV, at):
        if not decoding.temperature:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        keys_B = jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), at))(
            numbers_B
        )
        left_BV = truncated(logits_BV / decoding.temperature, decoding.top_k, decoding.top_p)
        return jax.vmap(jax.random.categorical)(keys_B, left_BV).astype(jnp.int32)

    def unfinished(carry):
        at, _, _, _, done_B = carry
        return (at < N) & ~jnp.all(done_B)

    def one(carry):
        at, token_B, cache, new_BN, done_B = carry
        new_BN = new_BN.at[:, at].set(token_B)
        done_B = done_B | is_end(token_B, eos)
        logits_BV, cache = follow(token_B, at, cache)
        return at + 1, choose(logits_BV, at + 1), cache, new_BN, done_B

    at = jnp.zeros((), jnp.int32)
    first = (at, choose(logits_BV, at), cache, jnp.zeros((B, N), jnp.int32), done_B)
    return jax.lax.while_loop(unfinished, one, first)[3]


def truncated(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Logits with -inf for all but the `top_k` most likely tokens, and of these the fewest that reach `top_p`.

    The most likely token always stays (Holtzman et al. 2020, arXiv 1904.09751; the order is transformers').
    """
    V = logits_BV.shape[-1]
    if 0 < top_k < V:
        least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        stays_BV = (before_BV < top_p) | (jnp.arange(V) == 0)
        least_B1 = jnp.min(jnp.where(stays_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    return logits_BV
