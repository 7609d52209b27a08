"""FLOP counts against the sizes of real trees and the products of real programs."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from rdjax.data.pairs import Pair, Prompts
from rdjax.distillation.step import GroupUpdate, loss_and_gradient
from rdjax.distillation.teacher import teacher_signals
from rdjax.models.config import LayerKind
from rdjax.models.families.registry import decoder_config_from_hf
from rdjax.models.lora import init_adapter
from rdjax.models.weights import abstract_params
from rdjax.plan.chips import CHIPS
from rdjax.plan.flops import (
    Floor,
    Work,
    adapter_parameters,
    attention_flops,
    block_parameters,
    parameters,
    step_floor,
    step_flops,
    teacher_flops,
)
from tests import tiny
from tests.distillation.case import OURS, SPEC, make_case, make_update, random_adapter, settings_of

LLAMA2 = decoder_config_from_hf(tiny.LLAMA2, "test")
# Tokens of a pair, one in a row: sizes of batches come in steps of 8, so nothing is padded.
STUDENT, TEACHER, RESPONSE = 24, 40, 7
ROWS, PREDICTED = 2, RESPONSE + 1


def sizes(fields, wanted) -> int:
    _, params = abstract_params(decoder_config_from_hf(fields, "test"), jnp.float32)
    return sum(leaf.size for path, leaf in flatten_dict(params, sep=".").items() if wanted(path))


@pytest.mark.parametrize("fields", tiny.CONFIGS.values(), ids=tiny.CONFIGS)
def test_parameters_are_those_of_the_model_less_norms_and_biases(fields):
    expected = sizes(fields, lambda path: not path.endswith(("norm.weight", "bias")))
    assert parameters(decoder_config_from_hf(fields, "test")) == expected


@pytest.mark.parametrize("fields", tiny.CONFIGS.values(), ids=tiny.CONFIGS)
def test_block_parameters_are_the_kernels_of_the_layers(fields):
    expected = sizes(fields, lambda path: path.startswith("layers.") and path.endswith("kernel"))
    assert block_parameters(decoder_config_from_hf(fields, "test")) == expected


@pytest.mark.parametrize("fields", tiny.CONFIGS.values(), ids=tiny.CONFIGS)
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), SPEC.targets], ids=["two", "six"])
def test_adapter_parameters_are_those_of_a_fresh_adapter(fields, targets):
    config, spec = decoder_config_from_hf(fields, "test"), dataclasses.replace(SPEC, targets=targets)
    made = jax.eval_shape(lambda: init_adapter(config, spec, 0))
    assert adapter_parameters(config, spec) == sum(leaf.size for leaf in jax.tree.leaves(made))


def test_attention_counts_half_of_the_square_for_queries_of_all_heads():
    # llama2: 2 layers, 4 query heads of width 8. Scores and mixing: 2 products of 2 * 8 FLOPs a pair and head.
    assert attention_flops(LLAMA2, [6, 10]) == 2 * 4 * (2 * 2 * 8) * (6 * 6 + 10 * 10) / 2


def test_attention_in_a_window_counts_what_it_sees():
    """Every second layer looks back 4 tokens: of a row of 10, the half square less that of the 6 beyond its window."""
    windowed = dataclasses.replace(LLAMA2, pattern=(LayerKind(), LayerKind(window=4)))
    assert attention_flops(windowed, [10]) == 4 * (4 * 8) * (10 * 10 / 2 + (10 * 10 - 6 * 6) / 2)
    assert attention_flops(windowed, [3]) == attention_flops(LLAMA2, [3])


def dot_flops(jaxpr) -> float:
    """FLOPs of all matrix products of a program; the body of a scan counts as often as it runs.

    Rows times rows that give one number each, and the gradient of that, are none: norms and losses have them.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (operand.aval.shape for operand in equation.invars)
            (summed, contracted), (_, batch) = equation.params["dimension_numbers"]
            free = [size for axis, size in enumerate(right) if axis not in (*contracted, *batch)]
            if summed and (free or len(left) > len(summed) + len(batch)):
                total += 2.0 * math.prod(left) * math.prod(free)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = [getattr(each, "jaxpr", each) for each in jax.tree.leaves(equation.params)]
        total += times * sum(dot_flops(each) for each in inner if hasattr(each, "eqns"))
    return total


def stacked(tree):
    return jax.tree.map(lambda leaf: leaf[None], tree)


@pytest.fixture(scope="module")
def problem():
    """A case, an adapter and an update of `ROWS` pairs without padding."""
    case = make_case(tiny.LLAMA2)
    pairs = []
    for number in range(ROWS):
        tail = (7,) * (STUDENT - RESPONSE - 1)
        prompts = Prompts("", "", (number,) * (TEACHER - STUDENT + 1) + tail, (number, *tail), len(tail), "row")
        pairs.append(Pair(prompts, (9,) * RESPONSE))
    return case, random_adapter(case.config), make_update(pairs, OURS, rows=ROWS)


def test_teacher_flops_are_the_products_of_the_teachers_pass(problem):
    """Of scanned layers; of those that are looped over, the last one leaves out what nothing reads."""
    case, _, batch = problem
    made = jax.make_jaxpr(lambda *given: teacher_signals(case.graph, *given, None, 1.0))(
        case.base, None, stacked(batch)
    )
    lengths = [TEACHER] * ROWS
    # On CPU the scores of a token with those behind it are computed too, and thrown away.
    assert dot_flops(made.jaxpr) == teacher_flops(case.config, lengths) + attention_flops(case.config, lengths)


def work(remat: str = "none", accumulation: int = 1) -> Work:
    return Work([STUDENT] * ROWS, ROWS * PREDICTED, remat, accumulation)


@pytest.mark.parametrize(("remat", "attention_passes"), [("none", 3), ("dots", 4), ("full", 4)])
def test_step_flops_are_the_products_of_loss_and_gradient(problem, remat, attention_passes):
    """Of scanned layers; of those that are looped over, the first one's input has no gradient, which saves a little,
    and the last one leaves out what nothing reads.
    """
    case, adapter, batch = problem
    config, settings = case.config, settings_of(case, remat=remat)
    signals = jax.eval_shape(lambda: teacher_signals(case.graph, case.base, None, stacked(batch), None, 1.0))
    signals = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), signals)
    made = jax.make_jaxpr(
        lambda adapter: loss_and_gradient(adapter, case.base, (GroupUpdate(batch, signals, None),), None, settings)
    )(adapter)
    expected = step_flops(config, SPEC, work(remat)) + attention_passes * attention_flops(config, [STUDENT] * ROWS)
    if remat == "full":  # the adapters too, but for what the last projection's adds; so little that it is left out
        anew = adapter_parameters(config, SPEC) - config.layers * SPEC.rank * config.width
        expected += 2 * anew * STUDENT * ROWS
    assert dot_flops(made.jaxpr) == expected


def test_step_flops_by_hand():
    # llama2 has 2 layers of q, o 32 x 32; k, v 32 x 16; gate, up, down 32 x 48, and 258 tokens. An adapter for q.
    spec = dataclasses.replace(SPEC, rank=1, targets=("q_proj",))
    layer, tokens = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48, 6 + 10
    attention = 2 * 2 * 32 * (6**2 + 10**2)
    plain = 4 * 2 * layer * tokens + 3 * attention + 6 * 2 * (32 + 32) * tokens + 6 * 258 * 32 * 5
    anew = 2 * 2 * (layer - 32 * 48) * tokens + attention
    for remat, expected in (("none", plain), ("dots", plain + attention), ("full", plain + anew)):
        assert step_flops(LLAMA2, spec, Work([6, 10], 5, remat, 1)) == expected


def floor(mesh: Sequence[int] = (1, 1, 1), remat: str = "full", accumulation: int = 1, weight_bytes: int = 2) -> Floor:
    return step_floor(LLAMA2, SPEC, work(remat, accumulation), CHIPS["v5e"], mesh, weight_bytes)


def test_a_floor_on_one_device_by_hand():
    alone = floor()
    assert alone.network == 0
    assert alone.compute == step_flops(LLAMA2, SPEC, work("full")) / 197e12
    # bfloat16 kernels: forward, backward, and all but the down projection anew; the head forward and backward.
    layer, down = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48, 32 * 48
    assert alone.memory == pytest.approx(2 * (3 * 2 * layer - 2 * down + 2 * 258 * 32) / 819e9)


def test_a_floor_lasts_as_long_as_what_is_slowest():
    assert Floor(compute=1.0, memory=4.0, network=2.0).seconds == 4.0


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_compute_is_shared_out_over_all_devices(mesh):
    assert floor(mesh).compute == pytest.approx(floor().compute / 8)


@pytest.mark.parametrize(("mesh", "share"), [((8, 1, 1), 1), ((1, 8, 1), 1), ((1, 1, 8), 8), ((2, 2, 2), 2)])
def test_only_the_tensor_axis_shares_out_reading_the_weights(mesh, share):
    assert floor(mesh).memory == pytest.approx(floor().memory / share)


def test_network_of_the_data_axis_is_the_gradient():
    gradient = 2 * adapter_parameters(LLAMA2, SPEC)
    assert floor((4, 1, 1)).network == pytest.approx(2 * gradient * 3 / 4 / 200e9)


def test_network_of_the_fsdp_axis_is_gathers_beside_the_gradient():
    kernels = 2 * (2 * block_parameters(LLAMA2) + 258 * 32)
    assert floor((1, 4, 1)).network - floor((4, 1, 1)).network == pytest.approx(kernels * 3 / 4 / 200e9)
    assert floor((1, 4, 1), weight_bytes=4).network > floor((1, 4, 1)).network


def test_network_of_the_tensor_axis_is_sums_of_activations():
    states = 2 * ROWS * STUDENT * 32  # of all tokens, bfloat16
    for remat, passes in (("none", 4), ("full", 5)):
        expected = passes * 2 * 2 * states * 3 / 4 / 200e9
        assert floor((1, 1, 4), remat).network == pytest.approx(expected)
        assert floor((2, 1, 4), remat).network == pytest.approx(expected / 2 + floor((2, 1, 1)).network)


def test_every_micro_batch_reads_and_gathers_the_weights_anew():
    once, twice = floor((1, 4, 1)), floor((1, 4, 1), accumulation=2)
    assert twice.compute == once.compute
    assert twice.memory == 2 * once.memory
    gradient = floor((4, 1, 1)).network
    assert twice.network - gradient == pytest.approx(2 * (once.network - gradient))


def test_computing_layers_anew_takes_longer():
    plain, anew = floor(remat="none"), floor(remat="full")
    assert anew.compute > plain.compute and anew.memory > plain.memory


def test_a_prefix_is_left_out_of_the_teachers_pass():
    whole, own = teacher_flops(LLAMA2, [20, 30]), teacher_flops(LLAMA2, [20, 30], prefix=8)
    assert whole - own == teacher_flops(LLAMA2, [8, 8])
