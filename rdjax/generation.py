"""Generation in batches with a key/value cache: greedy, sampled, or by beam search."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdjax.data.batches import round_up, shared_prefix
from rdjax.mesh import place_prefix, put, row_multiple, rows_sharding
from rdjax.models.decoder import Cache
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, effective
from rdjax.processes import to_host

PROMPT_BUCKET = 32  # prompts are padded to a multiple of this, so that few programs are compiled
NEVER = -1e9  # the score of a beam that is none; finite, as transformers has it, so that differences stay numbers


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
    shared = shared_prefix(prompts)
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
        scaled = effective(adapter, scale)
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
        return _search(follow, logits_BV, cache, empty_B, eos, decoding)
    return _sample(follow, logits_BV, cache, empty_B, numbers_B, seed, eos, decoding)


def _ends(tokens: jax.Array, eos: tuple[int, ...]) -> jax.Array:
    return jnp.isin(tokens, jnp.array(eos, jnp.int32)) if eos else jnp.zeros(tokens.shape, bool)


def _sample(follow, logits_BV, cache, done_B, numbers_B, seed, eos, decoding: Decoding) -> jax.Array:
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
        done_B = done_B | _ends(token_B, eos)
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


def _search(follow, logits_BV, cache, empty_B, eos, decoding: Decoding) -> jax.Array:
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
        ends_BE = _ends(token_BE, eos) | (at + 1 == N)
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
