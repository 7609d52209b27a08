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
from rdjax.models.layers import generation_layout
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
    """Generates a response to each prompt.

    Args:
      adapter, scale: added to the base; None for the base alone.
      prompts: token ids, of any lengths.
      batch_size: number of rows of a batch. Prompts are sorted by length, so that little is padded.
      seed: of the draws. Those of a prompt depend on it and on the prompt's index, not on the batches.
      on_batch: called behind every batch with its number of prompts.

    Returns:
      For each prompt the new ids without the end of sequence, and whether the end was reached.
    """
    if not prompts:
        return []
    rows = round_up(batch_size, row_multiple(model.mesh))
    # What all prompts begin with, such as a rule, is read once for all.
    shared = shared_prefix_length(prompts)
    prefix_C = place_prefix(prompts[0], shared, model.mesh)
    prompts = [prompt[shared:] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    scaled, eos = scaled_adapter(adapter, scale), () if decoding.ignore_eos else model.eos_ids
    responses: dict[int, tuple[list[int], bool]] = {}
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        batch = put(_pad_left(prompts, chosen, rows), rows_sharding(model.mesh))
        tokens = _decode(model.base, scaled, prefix_C, *batch, seed, graph=model.graph, eos=eos, decoding=decoding)
        for number, row in zip(chosen, to_host(tokens), strict=False):
            responses[number] = _until_end(row.tolist(), eos)
        on_batch(len(chosen))
    return [responses[number] for number in range(len(prompts))]


def _pad_left(
    prompts: Sequence[Sequence[int]], chosen: Sequence[int], rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns chosen prompts as rows of tokens [B, T] that end together, their lengths [B], and their numbers [B]."""
    width = round_up(max(len(prompts[number]) for number in chosen), PROMPT_BUCKET)
    tokens_BT = np.zeros((rows, width), np.int32)
    lengths_B, ids_B = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for row, number in enumerate(chosen):
        lengths_B[row], ids_B[row] = len(prompts[number]), number
        tokens_BT[row, width - lengths_B[row] :] = prompts[number]
    return tokens_BT, lengths_B, ids_B


def _until_end(ids: list[int], eos: tuple[int, ...]) -> tuple[list[int], bool]:
    """Returns the ids before the first end of sequence, and whether there was one."""
    ends = [index for index, token in enumerate(ids) if token in eos]
    return (ids[: ends[0]], True) if ends else (ids, False)


@functools.partial(jax.jit, static_argnames=("graph", "eos", "decoding"))
def _decode(
    base,
    adapter,
    prefix_C,
    tokens_BT,
    lengths_B,
    ids_B,
    seed,
    *,
    graph: nnx.GraphDef,
    eos: tuple[int, ...],
    decoding: Decoding,
) -> jax.Array:
    """Generates tokens [B, max_new_tokens] behind left-padded prompts, which all begin with the prefix.

    A row of length 0 is padding and ends at once. The cache holds a row's tokens as padded, then the new ones.
    """
    decoder = nnx.merge(graph, generation_layout(base, nnx.merge(graph, base).mesh))
    B, T = tokens_BT.shape
    S, C = T + decoding.max_new_tokens, 0 if prefix_C is None else prefix_C.shape[0]
    prefix = None if prefix_C is None else decoder.read_prefix(prefix_C, adapter)
    forward = functools.partial(read_tokens, decoder, adapter, prefix, C, S)
    padding_B, empty_B = T - lengths_B, lengths_B == 0
    logits_BV, cache = forward(tokens_BT, padding_B, jnp.arange(T), decoder.empty_cache(B, S, prefix))
    if decoding.beams > 1:
        padding_B = jnp.repeat(padding_B, decoding.beams)

    def advance(token_B, index, cache):
        """Returns the logits behind new token number `index`."""
        return forward(token_B[:, None], padding_B, (T + index)[None], cache)

    if decoding.beams > 1:
        return beam_search(advance, logits_BV, cache, empty_B, eos, decoding)
    return sample(advance, logits_BV, cache, empty_B, ids_B, seed, eos, decoding)


def read_tokens(decoder, adapter, prefix, C, S, tokens_BT, padding_B, slots_T, cache):
    """Reads tokens and writes them to the cache.

    Args:
      prefix, C: the shared prefix of all rows and its tokens; None and 0 where there is none.
      S: tokens that the cache can hold.
      padding_B: slots at the beginning of each row that are padding.
      slots_T: of the cache, for these tokens.

    Returns:
      The logits behind the last token [B, V], and the cache.
    """
    slots_S = jnp.arange(S)
    positions_BT = C + jnp.maximum(slots_T - padding_B[:, None], 0)
    real_BS = slots_S >= padding_B[:, None]
    causal_TS = slots_S <= slots_T[:, None]
    mask_BTS = (real_BS[:, None] & causal_TS) | (slots_S == slots_T[:, None])
    out = decoder(tokens_BT, positions_BT, mask_BTS, adapter=adapter, cache=cache, prefix=prefix, padding_B=padding_B)
    return decoder.logits(out.final_BPD[:, -1:])[:, 0], out.cache
