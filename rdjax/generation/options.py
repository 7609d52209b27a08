"""Defines how tokens are chosen and when a response ends."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Describes how tokens are chosen, in the terms of transformers' GenerationConfig.

    Attributes:
      max_new_tokens: a response is cut at this length.
      beams: above 1, beam search; the response with the highest mean log-probability per token is returned.
      temperature: 0 takes the most likely token; else tokens are drawn from softmax(logits / temperature).
      top_k: draws are from this many of the most likely tokens (0: from all).
      top_p: draws are from the fewest of these tokens that together have at least this probability.
      ignore_eos: continue behind the end of sequence.
    """

    max_new_tokens: int
    beams: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    ignore_eos: bool = False


def is_end(tokens: jax.Array, eos: tuple[int, ...]) -> jax.Array:
    """Tells which tokens end a response."""
    return jnp.isin(tokens, jnp.array(eos, jnp.int32)) if eos else jnp.zeros(tokens.shape, bool)
