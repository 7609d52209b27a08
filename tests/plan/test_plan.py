"""A plan is of the very programs that a run repeats, and its figures can be counted by hand."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from configs import base, llama2_7b
from rdjax.config import check_config
from rdjax.distill.optimizer import make_optimizer
from rdjax.distill.step import init_state, teacher_prefixes, teacher_signals, train_step
from rdjax.distill.updates import Updates, in_turn
from rdjax.errors import UserError
from rdjax.models.load import load_model
from rdjax.models.lora import LoraSpec, init_adapter
from rdjax.parallel.mesh import make_mesh, replicated
from rdjax.plan import __main__ as plan
from rdjax.plan import estimate, programs
from rdjax.plan.chips import CHIPS, chip_of, describe
from rdjax.run.pipeline import make_stage
from tests import tiny
from tests.commands import run_command, run_to_error

MESHES = [(1, 1, 1), (2, 2, 2)]
PAIRS, RULE, PROMPT, RESPONSE = 6, 24, 17, 7
FIELDS = {name: tiny.LLAMA2[name] for name in llama2_7b.get_config().model.architecture}

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the [tpu] extra")


def tiny_config(mesh=(1, 1, 1), fields=FIELDS, **changes) -> config_dict.ConfigDict:
    """A run of a tiny architecture that has no folder; `changes` by path, dots as in "train.batch_size"."""
    config = base.get_config()
    with config.unlocked():
        config.model.architecture = config_dict.ConfigDict(dict(fields))
    config.model.path = "tiny"
    config.model.remat = "full"
    config.task.k = PAIRS
    config.train.batch_size = PAIRS
    config.plan.update({"rule_tokens": RULE, "prompt_tokens": PROMPT, "response_tokens": RESPONSE})
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    config.update_from_flattened_dict(changes)
    check_config(config)
    return config


def plan_of(config: config_dict.ConfigDict, memory: float | None = None) -> dict:
    return estimate.make_plan(config, None, None, memory, quick=False)


@pytest.fixture(scope="module", params=MESHES, ids=str)
def made(request) -> dict:
    return plan_of(tiny_config(request.param))


def test_bytes_of_the_base_are_divided_over_fsdp_and_tensor(made):
    fsdp, tensor = made["mesh"]["fsdp"], made["mesh"]["tensor"]
    # llama2: 258 tokens, width 32, 2 layers of q, o 32 x 32; k, v 32 x 16; gate, up, down 32 x 48. Norms are whole.
    kernels = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 2 * 258 * 32
    assert made["parameters"] == kernels
    assert made["bytes_a_device"]["base"] == 4 * (kernels / (fsdp * tensor) + 2 * 2 * 32 + 32)


def test_every_device_holds_the_whole_adapter_and_its_moments(made):
    # Rank 16 on q, k, v, o of two layers.
    numbers = 2 * 16 * (2 * (32 + 32) + 2 * (32 + 16))
    assert made["adapter_parameters"] == numbers
    held = made["bytes_a_device"]
    assert held["adapter"] == 4 * numbers
    assert 0 <= held["optimizer"] - 2 * held["adapter"] <= 64, "two moments, and counts of steps"


def test_an_update_in_tokens(made):
    update = made["update"]
    assert update["pairs"] == PAIRS
    assert update["student_tokens"] == PAIRS * (PROMPT + RESPONSE)
    # The rule stands before all, and is read once.
    assert update["teacher_prefix"] == RULE
    assert update["teacher_tokens"] == PAIRS * (PROMPT + RESPONSE)
    # 2 FLOPs for each of the kernels' 15,360 numbers and each token, and for attention behind the rule.
    behind = (RULE + PROMPT + RESPONSE) ** 2 - RULE**2
    assert made["teacher_flops"] == PAIRS * (2 * 15360 * (PROMPT + RESPONSE) + 2 * 2 * 32 * behind)
    rows = made["mesh"]["data"] * made["mesh"]["fsdp"]
    assert update["rows"] == [1, rows, -(-PAIRS // rows) * (PROMPT + RESPONSE)]
    # All pairs, 8 predictions each, at which 2 layers' inputs and the final state are kept; float32 of width 32.
    assert made["signal_bytes"] == PAIRS * (RESPONSE + 1) * (2 + 1) * 32 * 4


def test_the_peak_holds_the_arguments_and_more(made):
    held = made["bytes_a_device"]
    head = 4 * 258 * 32 // (made["mesh"]["fsdp"] * made["mesh"]["tensor"])  # the teacher's pass makes no logits
    for name, least in (("step", sum(held.values())), ("teacher", held["base"] - head + held["adapter"])):
        assert least < made["compiled"][name]["peak"] < 100 * least
        assert made["compiled"][name]["seconds"] > 0


def test_without_a_limit_everything_fits(made):
    assert made["fits"] is True and made["memory"] is None
    assert made["floor_seconds"] is None, "these devices have no published figures"


def test_a_peak_above_the_memory_does_not_fit():
    made = estimate.make_plan(tiny_config(), None, None, 1000.0, quick=True)
    assert made["fits"] is False
    assert min(each["peak"] for each in made["compiled"].values()) > 1000
    assert "fits                  NO" in estimate.show(made)


def test_the_compiler_knows_the_options_of_a_quick_plan():
    """Options that it does not know are an error, for the devices of this machine as for described ones."""
    double = jax.jit(lambda x: 2 * x).lower(np.ones(1000, np.float32))
    assert programs.compile_program(double, quick=True).peak >= 4000
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        double.compile(compiler_options={**programs.QUICK, "no_such_option": 1})


@pytest.fixture
def answers(monkeypatch):
    """Has the compiler's place taken by answers; sets those of the programs in the order they are compiled."""

    def answer(*compiled: programs.Compiled) -> None:
        coming = iter(compiled)
        monkeypatch.setattr(estimate, "compile_program", lambda lowered, quick: next(coming))

    return answer


@pytest.mark.parametrize(
    ("step", "teacher", "memory", "fits"),
    [(100, 50, 100, True), (101, 50, 100, False), (50, 101, 100, False), (None, 50, None, False)],
)
def test_both_programs_have_to_fit(answers, step, teacher, memory, fits):
    answers(*(programs.Compiled(peak, "Used 2G of 1G hbm" if peak is None else "", 1.0) for peak in (step, teacher)))
    made = plan_of(tiny_config(), memory)
    assert made["fits"] is fits
    assert ("does not fit: Used 2G of 1G hbm" in estimate.show(made)) is (step is None)


def test_a_floor_by_the_published_figures_of_the_chip(answers):
    small = programs.Compiled(1, "", 0.0)
    answers(*[small] * 4)
    one, eight = (estimate.make_plan(tiny_config(mesh), None, CHIPS["v5e"], None, False) for mesh in MESHES)
    for name in ("step_flops", "teacher_flops", "parameters", "signal_bytes"):
        assert one[name] == eight[name] > 0
    assert one["floor_seconds"]["compute"] == one["step_flops"] / 197e12
    assert one["floor_seconds"]["compute"] == pytest.approx(8 * eight["floor_seconds"]["compute"])
    assert one["floor_seconds"]["network"] == 0 < eight["floor_seconds"]["network"]
    answers(small, small)
    twice = estimate.make_plan(tiny_config(**{"train.accumulation": 2}), None, CHIPS["v5e"], None, False)
    assert twice["update"]["rows"][0] == 2, "micro-batches, each of which reads the weights"
    assert twice["floor_seconds"]["memory"] == 2 * one["floor_seconds"]["memory"]
    assert f"{1e3 * one['floor_seconds']['step']:.1f} ms by published figures" in estimate.show(one)


def test_tuning_has_no_teacher(answers):
    answers(programs.Compiled(1, "", 0.0))
    made = plan_of(tiny_config(**{"method": "inst_tune_without_rule"}))
    assert list(made["compiled"]) == ["step"]
    assert made["signal_bytes"] == made["teacher_flops"] == 0


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_programs_are_those_of_a_run(tmp_path, mesh, accumulation):
    """The text of the lowered programs, shapes and shardings included, against those of real arrays."""
    config = tiny_config(mesh, **{"train.accumulation": accumulation, "model.dtype": "float32"})
    folder = tiny.write_tokenizer(tiny.write_random_checkpoint(tmp_path / "model", tiny.LLAMA2))
    model = load_model(str(folder), config.model.dtype, make_mesh(config.mesh))
    spec = LoraSpec(config.lora.rank, config.lora.alpha, config.lora.dropout, tuple(config.lora.targets))
    planned, lowered = programs.lower(config, programs.abstract_model(config, None), spec)

    stage = make_stage(config, spec, model.config.width, "student", config.method, valid_is_gold=True)
    numbers = in_turn(PAIRS, PAIRS, 1)
    adapters_M = jax.tree.map(lambda leaf: leaf[None], init_adapter(model.config, spec, 0))
    whole = replicated(model.mesh)
    adapters_M = jax.device_put(adapters_M, whole)
    train = config.train.copy_and_resolve_references()
    train.teacher_signals = "online"
    updates = Updates.make([programs.made_up_pairs(config)], numbers, stage.slots, stage.objective, model, train)
    updates = updates.with_signals(adapters_M, spec.scale, train, tmp_path / "signals")
    batch, signals = updates.place(updates.fetch(numbers[0]))
    optimizer = make_optimizer(config.optimizer, config.train.epochs)
    step = train_step.lower(
        jax.device_put(init_state(adapters_M, optimizer), whole),
        model.base,
        batch,
        signals,
        updates.trained_prefix_C,
        jax.device_put(np.zeros(1, np.uint32), whole),
        graph=model.graph,
        optimizer=optimizer,
        objective=stage.objective,
        options=stage.options,
    )
    assert planned.shapes == updates.shapes and planned.prefixes == updates.prefixes
    assert batch.student.tokens_BT.shape[1] == planned.accumulation == accumulation
    assert step.as_text() == lowered.step.as_text()
    prefix_C = updates.prefix_C("teacher")
    prefix_M = teacher_prefixes(model.graph, model.base, adapters_M, prefix_C, spec.scale)
    teacher = teacher_signals.lower(model.graph, model.base, adapters_M, batch, prefix_M, spec.scale)
    assert teacher.as_text() == lowered.teacher.as_text()


def fails(config: config_dict.ConfigDict) -> str:
    """The one line of the user's error that a config ends with."""
    with pytest.raises(UserError) as raised:
        plan_of(config)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ((3, 3, 1), "config.mesh: data 3 x fsdp 3 x tensor 1 needs 9 devices; there are 8"),
        ((-1, 3, 1), "config.mesh: data -1 x fsdp 3 x tensor 1: 3 do not divide the 8 devices"),
        ((-1, -1, 1), "config.mesh: data -1 x fsdp -1 x tensor 1; accepted: at most one axis of -1"),
        ((1, 1, 4), "config.mesh.tensor = 4 does not divide the model's 2 key-value heads"),
        ((1, 3, 1), "config.mesh.fsdp = 3 does not divide the model's 32 width"),
    ],
)
def test_a_mesh_that_does_not_suit(mesh, message):
    assert message in fails(tiny_config(mesh))


def test_described_devices_must_all_be_used():
    """Of this machine's devices a run may leave some idle; a slice is planned whole."""
    with pytest.raises(UserError, match="data 1 x fsdp 4 x tensor 1 needs 4 devices; there are 8"):
        estimate.make_plan(tiny_config((1, 4, 1)), jax.devices(), None, None, False)


EIGHT_HEADS = FIELDS | {"num_attention_heads": 8, "num_key_value_heads": 8}


def test_a_tensor_axis_that_does_not_divide_eight_key_value_heads():
    message = fails(tiny_config((1, 1, 3), EIGHT_HEADS))
    assert message == "config.mesh.tensor = 3 does not divide the model's 8 key-value heads"


@needs_libtpu
def test_a_tensor_axis_wider_than_the_key_value_heads():
    with pytest.raises(UserError, match=r"config\.mesh\.tensor = 16 does not divide the model's 8 key-value heads"):
        estimate.make_plan(tiny_config((1, 1, 16), EIGHT_HEADS), describe("v5e:4x4", 1), None, None, True)


@pytest.mark.parametrize("name", ["v9:2x2", "nonsense", "v5e", "v5e:", "v5e:4", "v5e:2x2x", "v5e:2x2x2x2", ":2x2"])
def test_an_unknown_topology_names_those_that_are_known(name):
    for look_up in (chip_of, lambda name: describe(name, 1)):
        with pytest.raises(UserError) as raised:
            look_up(name)
        assert str(raised.value) == (
            f"--topology: {name!r} is unknown; accepted: <chip>:<a>x<b>[x<c>] of v4, v5e, v5p, v6e, tpu7x"
        )


@pytest.fixture
def config_file(tmp_path) -> pathlib.Path:
    """The tiny config as a file that --config takes."""
    path = tmp_path / "config.py"
    path.write_text("from tests.plan.test_plan import tiny_config\n\n\ndef get_config():\n    return tiny_config()\n")
    return path


def test_the_command_prints_the_plan_and_writes_it(config_file, tmp_path, answers, capfd):
    answers(programs.Compiled(3 * 2**30, "", 61.4), programs.Compiled(None, "Used 20.5G of 15.75G hbm", 2.0))
    status = run_command(plan.main, f"--config={config_file}", f"--out={tmp_path / 'plan.json'}")
    assert status == 1, "it does not fit"
    printed = capfd.readouterr().out
    assert "peak, step            3.00 GiB (compiled in 61 s)" in printed
    assert "peak, teacher         does not fit: Used 20.5G of 15.75G hbm (compiled in 2 s)" in printed
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["fits"] is False and written["topology"] == "" and written["slices"] == 1
    assert written["compiled"]["step"] == {"peak": 3 * 2**30, "refused": "", "seconds": 61.4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.task.k=0"], "config.task.k = 0 takes all samples of a folder; a plan wants their number"),
        (["--slices=2"], "--slices=2 is of a topology; give one, e.g. --topology=v5e:4x4"),
        (["--topology=nonsense"], "--topology: 'nonsense' is unknown"),
        (["--config.mesh.fsdp=-1", "--config.mesh.data=-1"], "accepted: at most one axis of -1"),
    ],
)
def test_a_mistake_is_one_line(config_file, arguments, message, capfd):
    status, error = run_to_error(plan.main, f"--config={config_file}", *arguments, capfd=capfd)
    assert status == 2 and message in error


def test_the_command_itself_exits_with_two():
    """Once in a process of its own: what a shell sees."""
    ended = subprocess.run(
        [sys.executable, "-m", "rdjax.plan", f"--config={llama2_7b.__file__}", "--topology=v9:2x2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: --topology: 'v9:2x2' is unknown")


@needs_libtpu
def test_a_topology_that_no_chip_has():
    with pytest.raises(UserError) as raised:
        describe("v5e:3x5", 1)
    assert str(raised.value).startswith("--topology: v5e:3x5 is no topology of this chip") and "\n" not in str(
        raised.value
    )


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the [tpu] extra is here")
def test_without_the_compiler_its_extra_is_named():
    with pytest.raises(UserError, match=r"no compiler for TPUs .* pip install 'rdjax\[tpu\]' brings it"):
        describe("v5e:2x2", 1)


@needs_libtpu
def test_a_plan_for_tpus():
    made = estimate.make_plan(tiny_config((1, 2, 2)), describe("v5e:2x2", 1), CHIPS["v5e"], CHIPS["v5e"].memory, True)
    held = made["bytes_a_device"]
    assert made["fits"] is True and made["devices"] == 4 and "TPU v5" in made["device_kind"]
    # bfloat16 on accelerators; the adapter stays float32.
    kernels = made["parameters"]
    assert held["base"] == 2 * (kernels / 4 + 2 * 2 * 32 + 32)
    for each in made["compiled"].values():
        assert held["base"] < each["peak"] < 2**30
    assert made["floor_seconds"]["step"] == max(made["floor_seconds"].values()) > 0


@needs_libtpu
def test_two_slices_share_out_the_data():
    devices = describe("v5e:2x2", 2)
    assert len(devices) == 8
    made = estimate.make_plan(tiny_config((2, 2, 2)), devices, CHIPS["v5e"], CHIPS["v5e"].memory, True)
    assert made["fits"] is True and made["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(UserError, match=r"config\.mesh\.data = 1 is not a multiple of the 2 slices"):
        estimate.make_plan(tiny_config((1, 4, 2)), devices, None, None, True)


@needs_libtpu
def test_a_model_too_large_for_the_chips_does_not_fit():
    wide = FIELDS | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    wide |= {"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 1024}
    devices, chip = describe("v5e:2x2", 1), CHIPS["v5e"]
    made = estimate.make_plan(tiny_config((1, 4, 1), wide), devices, chip, chip.memory, True)
    assert made["bytes_a_device"]["base"] > chip.memory
    assert made["fits"] is False
    assert made["compiled"]["step"]["peak"] is None
    refused = made["compiled"]["step"]["refused"]
    assert "of 15.75G hbm" in refused or "exceeds available HBM (15.75G)" in refused
    assert f"peak, step            does not fit: {refused} (compiled in" in estimate.show(made)
