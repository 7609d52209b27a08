"""Every switch of `DecoderConfig` against a textbook; and windows, soft-caps and layer patterns in every path."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import config_dict

from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.config import AttentionSizes, DecoderConfig, DeltaNetConfig, LayerEmbeddings, LayerKind
from rdjax.models.decoder import Decoder
from rdjax.models.layers import unstack_layers
from rdjax.models.lora import LoraSpec, adapted_projections, init_adapter
from rdjax.models.norm import RMSNorm
from rdjax.models.packing import Packing
from rdjax.models.rotary import make_rope
from rdjax.models.sharding import param_shardings
from rdjax.models.weights import abstract_params
from rdjax.parallel.mesh import make_mesh
from tests import tiny
from tests.models import textbook

PLAIN = DecoderConfig(
    vocab=tiny.VOCAB,
    width=32,
    layers=4,
    heads=4,
    kv_heads=2,
    head_width=16,
    feed_forward=48,
    norm_epsilon=1e-5,
    max_positions=512,
    tied_embeddings=True,
    pattern=(LayerKind(make_rope({"rope_theta": 10000.0}, 16, 512)),),
)
ROPE = make_rope({"rope_theta": 10000.0}, 16, 512)
WINDOW = LayerKind(ROPE, window=5)
GLOBAL = LayerKind(make_rope({"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}, 16, 512))
NOPE = LayerKind(None)
SWITCHES = {
    "plain": {},
    "qkv bias": {"qkv_bias": True},
    "o bias": {"o_bias": True},
    "mlp bias": {"mlp_bias": True},
    "gelu": {"activation": "gelu_tanh"},
    "norm in float32": {"norm": "weight_in_float32"},
    "one plus weight": {"norm": "one_plus_weight"},
    "norms after": {"norms": "after"},
    "norms on both sides": {"norms": "both"},
    "qk norm of heads": {"qk_norm": "head"},
    "qk norm of all": {"qk_norm": "whole"},
    "score scale": {"score_scale": 0.1},
    "score cap": {"score_softcap": 1.5},
    "logit scale": {"logit_scale": 0.125},
    "logit cap": {"logit_softcap": 3.0},
    "embedding scale": {"embedding_scale": 5.0},
    "residual scale": {"residual_scale": 0.22},
    "half rotary": {"pattern": (LayerKind(make_rope({"rope_theta": 10000.0, "partial_rotary_factor": 0.5}, 16, 512)),)},
    "rotation of neighbours": {"pattern": (LayerKind(dataclasses.replace(ROPE, interleaved=True)),)},
    "amplitude": {"pattern": (LayerKind(dataclasses.replace(ROPE, amplitude=1.5)),)},
    "queries grow": {"pattern": (LayerKind(dataclasses.replace(ROPE, query_growth=0.5, query_period=3)),)},
    "window": {"pattern": (WINDOW,)},
    "window then global": {"pattern": (WINDOW, WINDOW, GLOBAL)},
    "no positions every fourth": {"pattern": (LayerKind(ROPE),) * 3 + (NOPE,)},
    "value norm": {"value_norm": True},
    "numbers of layers": {"layer_scale": True},
    "embeddings of layers": {"layer_embeddings": LayerEmbeddings(tiny.VOCAB, 8)},
    "gates of attention": {"attention_gate": True, "qk_norm": "head"},
    "untied": {"tied_embeddings": False, "logit_scale": 0.5},
}
# Here the random weights fit the switch, or float64 shows no difference.
SAME_RESULT = ("plain", "norm in float32", "one plus weight", "untied")
MIXED = dataclasses.replace(
    PLAIN,
    pattern=(WINDOW, GLOBAL, NOPE),
    qkv_bias=True,
    activation="gelu_tanh",
    norm="one_plus_weight",
    norms="both",
    qk_norm="head",
    score_scale=0.2,
    score_softcap=4.0,
    logit_softcap=5.0,
    embedding_scale=2.0,
)
NET = LayerKind(mixer="linear_attn")
GATED = dataclasses.replace(
    PLAIN,
    layers=6,
    pattern=(NET, NET, LayerKind(ROPE)),
    norm="one_plus_weight",
    qk_norm="head",
    attention_gate=True,
    delta_net=DeltaNetConfig(key_heads=2, value_heads=4, key_width=8, value_width=12, taps=4),
)
MODELS = {"attention of several kinds": MIXED, "delta nets": GATED}
MODELS["delta nets in no order"] = dataclasses.replace(GATED, layers=4, pattern=(NET, LayerKind(ROPE), WINDOW, NET))
_GLOBAL = LayerKind(make_rope({"rope_theta": 1e4, "rope_type": "proportional", "partial_rotary_factor": 0.5}, 24, 512))
_GLOBAL = dataclasses.replace(_GLOBAL, mixer="global_attn")
_SHARED = tuple(dataclasses.replace(kind, mixer=f"shared_{kind.mixer}") for kind in (WINDOW, _GLOBAL))
SHARED = dataclasses.replace(
    PLAIN,
    layers=8,
    pattern=(WINDOW, _GLOBAL) * 2 + _SHARED * 2,
    norms="both",
    qk_norm="head",
    value_norm=True,
    score_scale=0.3,
    global_attention=AttentionSizes(kv_heads=4, head_width=24, keys_as_values=True),
    shared_feed_forward=64,
    layer_embeddings=LayerEmbeddings(tiny.VOCAB, 8),
    layer_scale=True,
)
MODELS["shared keys and values"] = SHARED
MODELS["shared in no order"] = dataclasses.replace(
    SHARED, layers=5, pattern=(_GLOBAL, WINDOW, WINDOW, *reversed(_SHARED)), layer_embeddings=None
)
models = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
LAYOUTS = {"stacked": dict, "unstacked": unstack_layers}


def decoder_of(config: DecoderConfig, layout=dict) -> Decoder:
    return nnx.merge(abstract_params(config, jnp.float32)[0], layout(textbook.random_params(config)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_does_what_the_textbook_says(name, layout):
    config, tokens_T = dataclasses.replace(PLAIN, **SWITCHES[name]), tiny.random_tokens(12)
    params = textbook.random_params(config)
    expected = textbook.forward(config, params, tokens_T)
    decoder = decoder_of(config, LAYOUTS[layout])

    def states(decoder):
        positions_BT = jnp.arange(12)[None]
        out = decoder(tokens_T[None], positions_BT, inputs_at_BQ=positions_BT)
        return out.inputs_LBQD[:, 0], out.final_BPD[0], decoder.logits(out.final_BPD)[0]

    for ours, theirs in zip(tiny.compiled(decoder, states), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1, np.abs(theirs).max()))
    if name not in SAME_RESULT:
        plain = textbook.forward(PLAIN, textbook.random_params(PLAIN), tokens_T).logits_TV
        assert np.abs(plain - expected.logits_TV).max() > 1e-2, "the switch matters"


def test_norms_differ_in_the_dtype_of_the_weights_product():
    """Rounds to bfloat16 before the weight, or after it; each as numpy does."""
    random = np.random.RandomState(0)
    x, weight = (jnp.asarray(random.standard_normal(shape), jnp.bfloat16) for shape in ((64, 128), (128,)))
    x32, weight32 = (np.asarray(array, np.float32) for array in (x, weight))
    normed32 = x32 / np.sqrt((x32**2).mean(-1, keepdims=True) + 1e-6)
    expected = {
        "weight": normed32.astype(jnp.bfloat16) * np.asarray(weight),
        "weight_in_float32": (normed32 * weight32).astype(jnp.bfloat16),
        "one_plus_weight": (normed32 * (1 + weight32)).astype(jnp.bfloat16),
    }
    for kind, values in expected.items():
        norm = RMSNorm(weight.shape, weight.dtype, 1e-6, kind)
        norm.weight.set_value(weight)
        assert (np.asarray(norm(x)) == values).mean() > 0.999
    assert (expected["weight"] != expected["weight_in_float32"]).mean() > 0.05


@models
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_does_what_the_textbook_says(layout, config):
    """Reads a sequence in one call, and in two, the second of which goes on from what the first leaves behind."""
    tokens_T, decoder = tiny.random_tokens(12), decoder_of(config, LAYOUTS[layout])
    expected = textbook.forward(config, textbook.random_params(config), tokens_T)

    def states(decoder):
        out = decoder(tokens_T[None], jnp.arange(12)[None], inputs_at_BQ=jnp.arange(12)[None])
        first = decoder.read_prefix(tokens_T[:5], None)
        rest = decoder(tokens_T[None, 5:], jnp.arange(5, 12)[None], prefix=first)
        return out.inputs_LBQD[:, 0], out.final_BPD[0], rest.final_BPD[0]

    inputs_LTD, final_TD, rest_TD = tiny.compiled(decoder, states)
    for ours, theirs in (
        (inputs_LTD, expected.inputs_LTD),
        (final_TD, expected.final_TD),
        (rest_TD, expected.final_TD[5:]),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1, np.abs(theirs).max()))


@models
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prefix_and_packed_rows_change_nothing(layout, config):
    """The prefix is longer than the window: read once as keys and values, or in front of each packed row."""
    decoder, lengths = decoder_of(config, LAYOUTS[layout]), [7, 4, 9]
    prefix_C, rows = tiny.random_tokens(8, seed=9), [tiny.random_tokens(length, seed=length) for length in lengths]
    whole = tiny.forward(decoder, *tiny.pad_rows([np.concatenate([prefix_C, row]) for row in rows])).final_BPD
    expected = [whole[number, 8 : 8 + length] for number, length in enumerate(lengths)]
    tokens_BT, _ = tiny.pad_rows(rows)
    packed_T = np.concatenate([prefix_C, *rows])
    places = [(sequence, place) for sequence, length in enumerate(lengths) for place in range(length)]
    unpack_EU = np.full((3, 9), -1)
    for token, place in enumerate(places):
        unpack_EU[place] = token
    packing = Packing(np.array([[sequence * 9 + place for sequence, place in places]]), unpack_EU[None], 8)

    def in_both_ways(decoder):
        prefix = decoder.read_prefix(jnp.asarray(prefix_C), None)
        behind = decoder(tokens_BT, jnp.broadcast_to(8 + jnp.arange(9), (3, 9)), prefix=prefix).final_BPD
        positions_T = np.concatenate([np.arange(8), *(8 + np.arange(length) for length in lengths)])
        packed = decoder(packed_T[None], positions_T[None], packing=packing).final_BPD
        return behind, packed[0, 8:]

    behind, packed = tiny.compiled(decoder, in_both_ways)
    for number, states in enumerate(expected):
        np.testing.assert_allclose(behind[number, : lengths[number]], states, atol=5e-5)
    np.testing.assert_allclose(packed, np.concatenate(expected), atol=5e-5)


def model_of(config: DecoderConfig, sizes=(1, 1, 1), layout=dict):
    mesh = make_mesh(config_dict.ConfigDict(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))))
    graph, abstract = abstract_params(config, jnp.float32, mesh=mesh)
    base = layout(jax.device_put(textbook.random_params(config), param_shardings(mesh, abstract)))
    return types.SimpleNamespace(config=config, graph=graph, base=base, mesh=mesh, eos_ids=(1,))


@models
@pytest.mark.parametrize("shared", [0, 24])
@pytest.mark.parametrize(
    ("sizes", "layout"), [((1, 1, 1), "stacked"), ((1, 1, 1), "unstacked"), ((2, 2, 2), "stacked")]
)
def test_generation_takes_the_textbooks_tokens(sizes, layout, shared, config):
    """Greedy tokens far past the window, of prompts of different lengths, with a rule and without."""
    head = tiny.random_tokens(shared, seed=7).tolist()
    prompts = [head + tiny.random_tokens(length, seed=length).tolist() for length in (3, 11, 6)]
    model = model_of(config, sizes, LAYOUTS[layout])
    made = generate(model, None, 1.0, prompts, Decoding(10, ignore_eos=True), batch_size=2)
    for prompt, (ids, _) in zip(prompts, made, strict=True):
        logits_TV = textbook.forward(config, textbook.random_params(config), np.array(prompt + ids)).logits_TV
        assert logits_TV[len(prompt) - 1 : -1].argmax(axis=-1).tolist() == ids


@models
def test_layers_of_several_kinds_are_scanned_for_several_members(config):
    """The gradients of adapters that are vmapped over a scan with a switch, against each alone and unstacked."""
    targets = ("q_proj", "v_proj", "down_proj", "in_proj_qkv", "in_proj_a", "out_proj")
    spec, tokens_BT = LoraSpec(4, 4.0, 0.0, targets), tiny.random_tokens(2, 9)
    positions_BT = jnp.broadcast_to(jnp.arange(9), (2, 9))

    def loss(adapter, base):
        decoder = nnx.merge(abstract_params(config, jnp.float32)[0], base)
        return jnp.sum(jnp.sin(decoder(tokens_BT, positions_BT, adapter=adapter, remat="full").final_BPD))

    adapters = [jax.tree.map(lambda leaf: leaf + 0.05, init_adapter(config, spec, seed)) for seed in range(2)]
    params = textbook.random_params(config)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
    together = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(stacked, params)
    for member, adapter in enumerate(adapters):
        alone = jax.jit(jax.grad(loss))(adapter, unstack_layers(params))
        for ours, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(ours[member], theirs, atol=1e-4 * float(jnp.abs(theirs).max()))


def test_projections_are_in_the_order_of_definition():
    """The random numbers of adapters and dropout masks depend on it."""
    spec = LoraSpec(4, 4.0, 0.0, ("down_proj", "v_proj", "gate_proj", "q_proj"))
    paths = ["self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj"]
    assert list(adapted_projections(MIXED, spec)) == paths
    assert adapted_projections(MIXED, spec)["self_attn.v_proj"] == (32, 32)
