"""Generation in batches, greedy or sampled, with a key/value cache."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdjax.data.batches import round_up, shared_prefix
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, effective
from rdjax.sharding import replicated, row_multiple, rows_sharding

PROMPT_BUCKET = 32  # prompts are padded to a multiple of this, so that few programs are compiled


def generate(
    model: LanguageModel,
    adapter: Adapter | None,
    scale: float,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    ignore_eos: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[tuple[list[int], bool]]:
    """A continuation of each prompt, token by token.

    Args:
      adapter, scale: applied on top of the base; None for the base alone.
      prompts: token ids, of any lengths.
      batch_size: rows at a time, padded to that many; prompts are sorted by length to waste little.
      temperature: 0 takes the most likely token; else tokens are drawn from softmax(logits / temperature).
      seed: of the draws; those of a prompt follow from it and the prompt's number alone, however it is batched.
      on_batch: told how many prompts were just answered.

    Returns:
      For each prompt the new ids without the end of sequence, and whether the end was reached.
    """
    if not prompts:
        return []
    rows = round_up(batch_size, row_multiple(model.mesh))
    # A rule is read once for all prompts of a batch that begin with it.
    shared = shared_prefix(prompts)
    prefix_C = jax.device_put(np.array(prompts[0][:shared], np.int32), replicated(model.mesh))
    prompts = [prompt[shared:] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: dict[int, tuple[list[int], bool]] = {}
    eos = () if ignore_eos else model.eos_ids
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        width = round_up(max(len(prompts[number]) for number in part), PROMPT_BUCKET)
        tokens_BT, lengths_B, numbers_B = np.zeros((rows, width), np.int32), *np.zeros((2, rows), np.int32)
        for row, number in enumerate(part):
            lengths_B[row], numbers_B[row] = len(prompts[number]), number
            tokens_BT[row, width - lengths_B[row] :] = prompts[number]
        placed = jax.device_put((tokens_BT, lengths_B, numbers_B), rows_sharding(model.mesh))
        new_BN = np.asarray(
            _decode(
                model.base,
                effective(adapter, scale),
                prefix_C,
                *placed,
                seed,
                graph=model.graph,
                steps=max_new_tokens,
                eos=eos,
                temperature=temperature,
            )
        )
        for row, number in enumerate(part):
            answers[number] = _until_end(new_BN[row].tolist(), eos)
        on_batch(len(part))
    return [answers[number] for number in range(len(prompts))]


def _until_end(ids: list[int], eos: tuple[int, ...]) -> tuple[list[int], bool]:
    for at, token in enumerate(ids):
        if token in eos:
            return ids[:at], True
    return ids, False


@functools.partial(jax.jit, static_argnames=("graph", "steps", "eos", "temperature"))
def _decode(
    base,
    adapter,
    prefix_C,
    tokens_BT,
    lengths_B,
    numbers_B,
    seed,
    *,
    graph: nnx.GraphDef,
    steps: int,
    eos: tuple[int, ...],
    temperature: float,
):
    """New tokens [B, steps] for prompts that begin with the prefix; a row of length 0 is padding and ends at once.

    Slots of the cache: the prefix, the prompts' own tokens padded on the left, the new tokens.
    """
    decoder = nnx.merge(graph, base)
    B, T = tokens_BT.shape
    C = prefix_C.shape[0]
    padding_B = T - lengths_B
    slots_S = jnp.arange(C + T + steps)

    def choose(logits_BV, at):
        if not temperature:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        keys_B = jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), at))(
            numbers_B
        )
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV / temperature).astype(jnp.int32)

    def forward(tokens, slots_T, cache, at):
        """The token that follows the last of `tokens`, and the cache; token t sits at slot slots_T[t]."""
        positions_BT = jnp.maximum(slots_T - padding_B[:, None], 0)
        real_BS = (slots_S < C) | (slots_S >= C + padding_B[:, None])
        causal_TS = slots_S <= slots_T[:, None]
        mask_BTS = (real_BS[:, None] & causal_TS) | (slots_S == slots_T[:, None])
        out = decoder(tokens, positions_BT, mask_BTS, adapter=adapter, cache=cache)
        return choose(decoder.logits(out.final_BTD[:, -1:])[:, 0], at), out.cache

    def ended(token_B):
        return jnp.isin(token_B, jnp.array(eos, jnp.int32)) if eos else jnp.zeros(B, bool)

    def unfinished(carry):
        at, _, _, _, done_B = carry
        return (at < steps) & ~jnp.all(done_B)

    def one(carry):
        at, token_B, cache, new_BN, done_B = carry
        new_BN = new_BN.at[:, at].set(token_B)
        done_B = done_B | ended(token_B)
        token_B, cache = forward(token_B[:, None], (C + T + at)[None], cache, at + 1)
        return at + 1, token_B, cache, new_BN, done_B

    token_B, cache = forward(tokens_BT, C + jnp.arange(T), decoder.read_prefix(prefix_C, B, T + steps, adapter), 0)
    first = (jnp.zeros((), jnp.int32), token_B, cache, jnp.zeros((B, steps), jnp.int32), lengths_B == 0)
    return jax.lax.while_loop(unfinished, one, first)[3]
