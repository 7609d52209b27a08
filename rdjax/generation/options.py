"""How tokens are chosen, and when a response ends."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; the terms are those of transformers' GenerationConfig.

    Attributes:
      max_new_tokens: after so many a response is cut.
      beams: above 1 beam search: of the responses found, the one with the highest mean log-probability a token.
      temperature: 0 takes the most likely token; else tokens are drawn from softmax(logits / temperature),
      top_k: from the so many most likely ones (0: from all),
      top_p: and of these from the fewest that have this probability together.
      ignore_eos: go on past the end of sequence.
    """

    max_new_tokens: int
    beams: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    ignore_eos: bool = False


def is_end(tokens: jax.Array, eos: tuple[int, ...]) -> jax.Array:
    return jnp.isin(tokens, jnp.array(eos, jnp.int32)) if eos else jnp.zeros(tokens.shape, bool)
