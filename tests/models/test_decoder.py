"""Properties of the forward pass: what each position depends on, and what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rdjax.config import TARGETS
from rdjax.models.attention import shared_prefix_mask
from rdjax.models.block import gather_positions
from rdjax.models.decoder import Decoder
from rdjax.models.layers import unstack_layers
from rdjax.models.linear import Dropout
from rdjax.models.lora import LoraSpec, init_adapter
from rdjax.models.norm import RMSNorm
from rdjax.models.packing import Packing
from tests import tiny

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def decoder():
    return tiny.random_decoder(tiny.LLAMA3)


@pytest.fixture(scope="module")
def dependence(decoder):
    """A function of a mask: which of 8 outputs depends on which of 8 input tokens, by gradient.

    All tokens differ, so row i of the embedding's gradient is that of the i-th input alone.
    """
    graph, params = nnx.split(decoder)
    params = nnx.to_pure_dict(params)
    tokens_BT = positions_BT = jnp.arange(8)[None]
    weights_D = jnp.linspace(1, 2, decoder.config.width)

    def outputs_T(embedding_VD, mask_TT):
        model = nnx.merge(graph, params | {"embed_tokens": embedding_VD})
        return model(tokens_BT, positions_BT, mask_TT[None]).final_BPD[0] @ weights_D

    gradient_TVD = jax.jit(jax.jacrev(outputs_T))
    return lambda mask_TT: np.abs(gradient_TVD(params["embed_tokens"], mask_TT)).max(axis=-1)[:, :8] > 0


@pytest.mark.parametrize("make_mask", [tiny.causal_mask, shared_prefix_mask])
@pytest.mark.parametrize("segments", [[1] * 8, [1, 1, 1, 2, 2, 3, 3, 3], [1, 1, 2, 2, 2, 0, 0, 0]])
def test_outputs_depend_on_exactly_what_the_mask_shows(dependence, make_mask, segments):
    """Causality, segments and padding at once: the gradient is zero everywhere else, and only there."""
    mask_TT = make_mask(np.array([segments]))[0]
    np.testing.assert_array_equal(dependence(mask_TT), mask_TT)


def test_padding_changes_nothing(decoder):
    """Neither the length of the padding nor the tokens in it reach a real position."""
    lengths = [3, 9]
    short_BT, long_BT = tiny.random_tokens(2, 9), tiny.random_tokens(2, 14, seed=1)
    for row, length in enumerate(lengths):
        long_BT[row, :length] = short_BT[row, :length]
    short, long = (tiny.forward(decoder, tokens_BT, lengths) for tokens_BT in (short_BT, long_BT))
    assert np.isfinite(long.final_BPD).all()
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(long.final_BPD[row, :length], short.final_BPD[row, :length], atol=TOLERANCE)
        np.testing.assert_allclose(
            long.inputs_LBQD[:, row, :length], short.inputs_LBQD[:, row, :length], atol=TOLERANCE
        )


@pytest.mark.parametrize("before", [0, 6])
def test_without_a_mask_tokens_see_the_prefix_and_their_past(decoder, before):
    """And padding behind a sequence stays unseen."""
    lengths, read = [3, 9], tiny.random_tokens(before, seed=2)
    tokens_BT, _ = tiny.pad_rows([tiny.random_tokens(length, seed=length) for length in lengths])
    whole_BT, _ = tiny.pad_rows(
        [np.concatenate([read, row[:length]]) for row, length in zip(tokens_BT, lengths, strict=True)]
    )
    expected = tiny.forward(decoder, whole_BT, [before + length for length in lengths])

    def behind(decoder):
        prefix = decoder.read_prefix(jnp.asarray(read), None) if before else None
        positions_BT = jnp.broadcast_to(before + jnp.arange(9), (2, 9))
        return decoder(tokens_BT, positions_BT, prefix=prefix).final_BPD

    final_BTD = tiny.compiled(decoder, behind)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(
            final_BTD[row, :length], expected.final_BPD[row, before : before + length], atol=TOLERANCE
        )


def test_packed_segments_equal_separate_sequences(decoder):
    lengths = [4, 7, 2]
    tokens_T = tiny.random_tokens(sum(lengths))
    segments_T = np.repeat([1, 2, 3], lengths)
    positions_T = np.concatenate([np.arange(n) for n in lengths])
    mask_1TT = tiny.causal_mask(segments_T[None])
    packed = tiny.compiled(decoder, Decoder.__call__, tokens_T[None], positions_T[None], mask_1TT)
    own = [segments_T == segment for segment in (1, 2, 3)]
    separate = tiny.forward(decoder, *tiny.pad_rows([tokens_T[mine] for mine in own]))
    for row, mine in enumerate(own):
        np.testing.assert_allclose(packed.final_BPD[0, mine], separate.final_BPD[row, : mine.sum()], atol=TOLERANCE)


def test_shared_prefix_equals_separate_prompts(decoder):
    """A prefix computed once for several prompts in one row is as good as repeating it before each."""
    prefix, lengths = 6, [4, 3, 5]
    tokens_T = tiny.random_tokens(prefix + sum(lengths))
    segments_T = np.repeat([1, 2, 3, 4], [prefix, *lengths])
    positions_T = np.concatenate([np.arange(prefix), *(prefix + np.arange(n) for n in lengths)])
    mask_1TT = shared_prefix_mask(segments_T[None])
    shared = tiny.compiled(decoder, Decoder.__call__, tokens_T[None], positions_T[None], mask_1TT)
    seen = [(segments_T == 1) | (segments_T == segment) for segment in (2, 3, 4)]
    separate = tiny.forward(decoder, *tiny.pad_rows([tokens_T[own] for own in seen]))
    for row, own in enumerate(seen):
        np.testing.assert_allclose(shared.final_BPD[0, own], separate.final_BPD[row, : own.sum()], atol=TOLERANCE)


def test_only_distances_matter_to_rotary_attention(decoder):
    here_T = np.arange(12)
    positions_BT = np.stack([here_T, here_T + 100, 3 * here_T])
    tokens_BT = np.broadcast_to(tiny.random_tokens(12), (3, 12))
    mask_BTT = tiny.causal_mask(np.ones((3, 12), np.int32))
    here, shifted, stretched = tiny.compiled(decoder, Decoder.__call__, tokens_BT, positions_BT, mask_BTT).final_BPD
    np.testing.assert_allclose(shifted, here, atol=2e-4)
    assert np.abs(stretched - here).max() > 0.05


def test_inputs_are_gathered_at_the_wanted_positions(decoder):
    """The first is the embedding, and each row of the batch has its own positions."""
    tokens_BT = tiny.random_tokens(2, 9)
    at_BQ = np.array([[8, 0, 3], [1, 1, 7]])
    positions_BT = np.broadcast_to(np.arange(9), (2, 9))
    mask_BTT = tiny.causal_mask(np.ones((2, 9), np.int32))

    def chosen_inputs(decoder):
        return decoder(tokens_BT, positions_BT, mask_BTT, inputs_at_BQ=at_BQ).inputs_LBQD

    chosen, everywhere = tiny.compiled(decoder, chosen_inputs), tiny.forward(decoder, tokens_BT).inputs_LBQD
    np.testing.assert_allclose(chosen, everywhere[:, [[0], [1]], at_BQ], atol=TOLERANCE)
    np.testing.assert_array_equal(chosen[0, 1, 2], decoder.embed_tokens[...][tokens_BT[1, 7]])


def loss_and_gradient(decoder, layout=dict, **options):
    """A loss on final states and on block inputs, and its gradient for all (stacked) parameters."""
    graph, params = nnx.split(decoder)
    tokens_BT = tiny.random_tokens(2, 10)

    def loss(params):
        out = tiny.apply(nnx.merge(graph, layout(params)), tokens_BT, [10, 6], **options)
        return (out.final_BPD**2).mean() + jnp.sin(out.inputs_LBQD).mean()

    return jax.jit(jax.value_and_grad(loss))(nnx.to_pure_dict(params))


@pytest.mark.parametrize("layout", [unstack_layers, dict])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_final_states_at_the_wanted_positions_are_those_of_all(decoder, layout, remat):
    """Under an adapter with dropout, packed; and so is the gradient, where the last layer leaves the others out."""
    graph, params = nnx.split(decoder)
    params = layout(nnx.to_pure_dict(params))
    tokens_BT, at_BP = tiny.random_tokens(2, 9), jnp.array([[8, 0, 3], [1, 1, 7]])
    positions_BT = jnp.array([[*range(5), *range(4)]] * 2)
    places_BT, places_BEU = jnp.array([[*range(9)]] * 2), jnp.array([[[0, 1, 2, 3, 4], [5, 6, 7, 8, -1]]] * 2)
    packing = Packing(places_BT, places_BEU)
    dropout = Dropout(0.3, jax.random.key(1), jnp.arange(18).reshape(2, 9))
    adapter = {
        name: {part: 0.1 * jnp.ones_like(matrix) for part, matrix in ab.items()}
        for name, ab in init_adapter(decoder.config, LoraSpec(4, 4.0, 0.3, TARGETS), 0).items()
    }

    def loss(adapter, asked):
        out = nnx.merge(graph, params)(
            tokens_BT,
            positions_BT,
            adapter=adapter,
            dropout=dropout,
            packing=packing,
            remat=remat,
            final_at_BP=at_BP if asked else None,
        )
        final_BPD = out.final_BPD if asked else gather_positions(out.final_BPD, at_BP)
        return jnp.sum(jnp.sin(final_BPD)), final_BPD

    (_, ours), gradient = jax.jit(jax.value_and_grad(lambda adapter: loss(adapter, True), has_aux=True))(adapter)
    (_, expected), whole = jax.jit(jax.value_and_grad(lambda adapter: loss(adapter, False), has_aux=True))(adapter)
    assert ours.shape == (2, 3, decoder.config.width)
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max())), gradient, whole)


def assert_trees_close(left, right, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), left, right)


@pytest.fixture(scope="module")
def plain(decoder):
    return loss_and_gradient(decoder)


@pytest.mark.parametrize(
    ("remat", "layout"), [("full", dict), ("dots", dict), ("none", unstack_layers), ("full", unstack_layers)]
)
def test_neither_remat_nor_layout_change_loss_or_gradient(decoder, plain, remat, layout):
    changed = loss_and_gradient(decoder, layout, remat=remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), changed, plain)


def test_norm_of_bfloat16_is_computed_in_float32():
    """Right to the last bit of bfloat16; a single bfloat16 step on the way would shift many of them."""
    x = jnp.asarray(np.random.RandomState(0).standard_normal((64, 128)), jnp.bfloat16)
    x64 = np.asarray(x, np.float64)
    exact = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-6)
    normed = RMSNorm((128,), jnp.bfloat16, 1e-6)(x)
    assert normed.dtype == jnp.bfloat16
    assert (np.asarray(normed) == exact.astype(np.float32).astype(jnp.bfloat16)).mean() > 0.999


def test_bfloat16_model_follows_the_float32_model():
    """Activations are bfloat16, logits float32 and not merely rounded to bfloat16."""
    tokens_BT = tiny.random_tokens(2, 12)
    half = tiny.random_decoder(tiny.LLAMA3, dtype=jnp.bfloat16)
    graph, params = nnx.split(half)
    full = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.float32), nnx.to_pure_dict(params)))

    def states_and_logits(decoder):
        out = tiny.apply(decoder, tokens_BT)
        return out, decoder.logits(out.final_BPD)

    (out, logits), (_, expected) = (tiny.compiled(model, states_and_logits) for model in (half, full))
    assert out.final_BPD.dtype == out.inputs_LBQD.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert (logits != logits.astype(jnp.bfloat16)).mean() > 0.9
    assert np.sqrt(((logits - expected) ** 2).mean() / (expected**2).mean()) < 0.02


def test_tied_head_is_the_embedding(decoder):
    final_BPD = jnp.asarray(np.random.RandomState(0).standard_normal((1, 2, 32)), jnp.float32)
    expected = np.asarray(final_BPD, np.float64) @ np.asarray(decoder.embed_tokens[...], np.float64).T
    np.testing.assert_allclose(decoder.logits(final_BPD), expected, atol=TOLERANCE)
