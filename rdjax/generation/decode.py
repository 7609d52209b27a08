"""Generates in batches with a key-value cache."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdjax.data.prefix import shared_prefix_length
from rdjax.data.shapes import round_up
from rdjax.generation.beam_search import beam_search
from rdjax.generation.options import Decoding
from rdjax.generation.sample import sample
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, scaled_adapter
from rdjax.parallel.mesh import place_prefix, put, row_multiple, rows_sharding
from rdjax.parallel.processes import to_host

PROMPT_BUCKET = 32  # prompts are padded to a multiple of this, so that few programs are compiled


def generate(
    model: LanguageModel,
    adapter: Adapter | None,
    scale: float,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_size: int,
    seed: int = 0,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[tuple[list[int], bool]]:
    """A continuation of each prompt.

    Args:
      adapter, scale: applied on top of the base; None for the base alone.
      prompts: token ids, of any lengths.
      batch_size: rows at a time, padded to that many; prompts are sorted by length to waste little.
      seed: of the draws; those of a prompt follow from it and the prompt's number alone, however it is batched.
      on_batch: told how many prompts were just answered.

    Returns:
      For each prompt the new ids without the end of sequence, and whether the end was reached.
    """
    if not prompts:
        return []
    rows = round_up(batch_size, row_multiple(model.mesh))
    # A rule is read once for all prompts of a batch that begin with it.
    shared = shared_prefix_length(prompts)
    prefix_C = place_prefix(prompts[0], shared, model.mesh)
    prompts = [prompt[shared:] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: dict[int, tuple[list[int], bool]] = {}
    eos = () if decoding.ignore_eos else model.eos_ids
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        width = round_up(max(len(prompts[number]) for number in part), PROMPT_BUCKET)
        tokens_BT, lengths_B, numbers_B = np.zeros((rows, width), np.int32), *np.zeros((2, rows), np.int32)
        for row, number in enumerate(part):
            lengths_B[row], numbers_B[row] = len(prompts[number]), number
            tokens_BT[row, width - lengths_B[row] :] = prompts[number]
        placed = put((tokens_BT, lengths_B, numbers_B), rows_sharding(model.mesh))
        scaled = scaled_adapter(adapter, scale)
        made = _decode(model.base, scaled, prefix_C, *placed, seed, graph=model.graph, eos=eos, decoding=decoding)
        new_BN = to_host(made)
        for row, number in enumerate(part):
            answers[number] = _until_end(new_BN[row].tolist(), eos)
        on_batch(len(part))
    return [answers[number] for number in range(len(prompts))]


def _until_end(ids: list[int], eos: tuple[int, ...]) -> tuple[list[int], bool]:
    for at, token in enumerate(ids):
        if token in eos:
            return ids[:at], True
    return ids, False


@functools.partial(jax.jit, static_argnames=("graph", "eos", "decoding"))
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
    eos: tuple[int, ...],
    decoding: Decoding,
):
    """New tokens [B, N] for prompts that begin with the prefix; a row of length 0 is padding and ends at once.

    Slots of the cache: the prompts' own tokens padded on the left, the new tokens.
    """
    decoder = nnx.merge(graph, base)
    B, T = tokens_BT.shape
    C, N = 0 if prefix_C is None else prefix_C.shape[0], decoding.max_new_tokens
    slots_S = jnp.arange(T + N)
    prefix = None if prefix_C is None else decoder.read_prefix(prefix_C, adapter)

    def forward(tokens, padding_B, slots_T, cache):
        """Logits behind the last of `tokens`, and the cache; token t sits at slot slots_T[t]."""
        positions_BT = C + jnp.maximum(slots_T - padding_B[:, None], 0)
        real_BS = slots_S >= padding_B[:, None]
        causal_TS = slots_S <= slots_T[:, None]
        mask_BTS = (real_BS[:, None] & causal_TS) | (slots_S == slots_T[:, None])
        out = decoder(tokens, positions_BT, mask_BTS, adapter=adapter, cache=cache, prefix=prefix)
        return decoder.logits(out.final_BPD[:, -1:])[:, 0], out.cache

    padding_B, empty_B = T - lengths_B, lengths_B == 0
    logits_BV, cache = forward(tokens_BT, padding_B, jnp.arange(T), decoder.empty_cache(B, T + N))
    if decoding.beams > 1:
        padding_B = jnp.repeat(padding_B, decoding.beams)

    def follow(token_B, at, cache):
        """Logits behind new token number `at`."""
        return forward(token_B[:, None], padding_B, (T + at)[None], cache)

    if decoding.beams > 1:
        return beam_search(follow, logits_BV, cache, empty_B, eos, decoding)
    return sample(follow, logits_BV, cache, empty_B, numbers_B, seed, eos, decoding)
