"""Checks plans: they compile the programs that a run repeats, and their figures can be counted by hand."""

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
from rdjax.data.groups import make_group
from rdjax.distillation.optimizer import make_optimizer, with_auto_rate
from rdjax.distillation.step import StepSettings, init_state, train_step
from rdjax.distillation.teacher import teacher_prefixes, teacher_signals
from rdjax.distillation.updates import make_loader, put_update, sequential_batches, with_signals
from rdjax.errors import UserError
from rdjax.models.load import load_model
from rdjax.models.lora import LoraSpec, init_adapter
from rdjax.parallel.mesh import make_mesh, replicated
from rdjax.plan import __main__ as command
from rdjax.plan import estimate, programs
from rdjax.plan.chips import CHIPS, find_chip, topology_devices
from rdjax.run.stages import make_stage
from tests import tiny
from tests.commands import run_command, run_to_error

MESHES = [(1, 1, 1), (2, 2, 2)]
PAIRS, RULE, PROMPT, RESPONSE = 6, 24, 17, 7
FIELDS = {name: tiny.LLAMA2[name] for name in llama2_7b.get_config().model.architecture}

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the [tpu] extra")


def tiny_config(mesh=(1, 1, 1), fields=FIELDS, **changes) -> config_dict.ConfigDict:
    """Returns the config of a tiny model without a folder; `changes` are by path, as in "train.batch_size"."""
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
def planned(request) -> dict:
    return plan_of(tiny_config(request.param))


def test_bytes_of_the_base_are_divided_over_fsdp_and_tensor(planned):
    fsdp, tensor = planned["mesh"]["fsdp"], planned["mesh"]["tensor"]
    # llama2: 258 tokens, width 32, 2 layers of q, o 32 x 32; k, v 32 x 16; gate, up, down 32 x 48. Norms are whole.
    kernels = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 2 * 258 * 32
    assert planned["parameters"] == kernels
    assert planned["bytes_a_device"]["base"] == 4 * (kernels / (fsdp * tensor) + 2 * 2 * 32 + 32)


def test_every_device_holds_the_whole_adapter_and_its_moments(planned):
    # Rank 16 on q, k, v, o of two layers.
    numbers = 2 * 16 * (2 * (32 + 32) + 2 * (32 + 16))
    assert planned["adapter_parameters"] == numbers
    on_device = planned["bytes_a_device"]
    assert on_device["adapter"] == 4 * numbers
    assert 0 <= on_device["optimizer"] - 2 * on_device["adapter"] <= 64, "two moments, and counts of steps"


def test_an_update_in_tokens(planned):
    update = planned["update"]
    assert update["pairs"] == PAIRS
    assert update["student_tokens"] == PAIRS * (PROMPT + RESPONSE)
    # The rule stands before all, and is read once.
    assert update["teacher_prefix"] == RULE
    assert update["teacher_tokens"] == PAIRS * (PROMPT + RESPONSE)
    # 2 FLOPs for each of the kernels' 15,360 numbers and each token, and for attention behind the rule.
    behind = (RULE + PROMPT + RESPONSE) ** 2 - RULE**2
    assert planned["teacher_flops"] == PAIRS * (2 * 15360 * (PROMPT + RESPONSE) + 2 * 2 * 32 * behind)
    rows = planned["mesh"]["data"] * planned["mesh"]["fsdp"]
    assert update["rows"] == [1, rows, -(-PAIRS // rows) * (PROMPT + RESPONSE)]
    # All pairs, 8 predictions each, at which 2 layers' inputs and the final state are kept; float32 of width 32.
    assert planned["signal_bytes"] == PAIRS * (RESPONSE + 1) * (2 + 1) * 32 * 4


def test_the_peak_holds_the_arguments_and_more(planned):
    on_device = planned["bytes_a_device"]
    head = 4 * 258 * 32 // (planned["mesh"]["fsdp"] * planned["mesh"]["tensor"])  # the teacher's pass makes no logits
    for name, least in (
        ("step", sum(on_device.values())),
        ("teacher", on_device["base"] - head + on_device["adapter"]),
    ):
        assert least < planned["compiled"][name]["peak"] < 100 * least
        assert planned["compiled"][name]["seconds"] > 0


def test_without_a_limit_everything_fits(planned):
    assert planned["fits"] is True and planned["memory"] is None
    assert planned["floor_seconds"] is None, "these devices have no published figures"


def test_a_peak_above_the_memory_does_not_fit():
    planned = estimate.make_plan(tiny_config(), None, None, 1000.0, quick=True)
    assert planned["fits"] is False
    assert min(each["peak"] for each in planned["compiled"].values()) > 1000
    assert "fits                  NO" in estimate.plan_text(planned)


def test_the_compiler_knows_the_options_of_a_quick_plan():
    """Options that it does not know are an error, for the devices of this machine as for described ones."""
    double = jax.jit(lambda x: 2 * x).lower(np.ones(1000, np.float32))
    assert programs.compile_program(double, quick=True).peak >= 4000
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        double.compile(compiler_options={**programs.QUICK, "no_such_option": 1})


@pytest.fixture
def answers(monkeypatch):
    """Replaces the compiler: the returned function sets its answers, in the order of compilation."""

    def answer(*compiled: programs.Compiled) -> None:
        answers = iter(compiled)
        monkeypatch.setattr(estimate, "compile_program", lambda lowered, quick: next(answers))

    return answer


@pytest.mark.parametrize(
    ("step", "teacher", "memory", "fits"),
    [(100, 50, 100, True), (101, 50, 100, False), (50, 101, 100, False), (None, 50, None, False)],
)
def test_both_programs_have_to_fit(answers, step, teacher, memory, fits):
    answers(*(programs.Compiled(peak, "Used 2G of 1G hbm" if peak is None else "", 1.0) for peak in (step, teacher)))
    planned = plan_of(tiny_config(), memory)
    assert planned["fits"] is fits
    assert ("does not fit: Used 2G of 1G hbm" in estimate.plan_text(planned)) is (step is None)


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
    assert f"{1e3 * one['floor_seconds']['step']:.1f} ms by published figures" in estimate.plan_text(one)


def test_tuning_has_no_teacher(answers):
    answers(programs.Compiled(1, "", 0.0))
    planned = plan_of(tiny_config(**{"method": "inst_tune_without_rule"}))
    assert list(planned["compiled"]) == ["step"]
    assert planned["signal_bytes"] == planned["teacher_flops"] == 0


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_programs_are_those_of_a_run(tmp_path, mesh, accumulation):
    """Compares the text of the lowered programs, shapes and shardings included, with that of real arrays."""
    config = tiny_config(mesh, **{"train.accumulation": accumulation, "model.dtype": "float32"})
    folder = tiny.write_tokenizer(tiny.write_random_checkpoint(tmp_path / "model", tiny.LLAMA2))
    model = load_model(str(folder), config.model.dtype, make_mesh(config.mesh))
    spec = LoraSpec(config.lora.rank, config.lora.alpha, config.lora.dropout, tuple(config.lora.targets))
    planned, lowered = programs.lower(config, programs.abstract_model(config, None), spec)

    stage = make_stage(config, spec, model.config.width, "student", config.method, valid_is_gold=True)
    numbers = sequential_batches(PAIRS, PAIRS, 1)
    adapters_M = jax.tree.map(lambda leaf: leaf[None], init_adapter(model.config, spec, 0))
    whole = replicated(model.mesh)
    adapters_M = jax.device_put(adapters_M, whole)
    train = config.train.copy_and_resolve_references()
    train.teacher_signals = "online"
    group = make_group(programs.planned_pairs(config), stage.positions)
    loader = make_loader([group], numbers, stage.positions, stage.objective, model, train)
    loader = with_signals(loader, adapters_M, spec.scale, train, tmp_path / "signals", {})
    update = put_update([loader], [loader.fetch(numbers[0])])
    optimizer = make_optimizer(with_auto_rate(config, model.config.width).optimizer, config.train.updates)
    step = train_step.lower(
        jax.device_put(init_state(adapters_M, optimizer), whole),
        model.base,
        update,
        jax.device_put(np.zeros(1, np.uint32), whole),
        settings=StepSettings(model.graph, stage.objectives, stage.scale, stage.dropout, stage.remat),
        optimizer=optimizer,
    )
    assert planned.shapes == loader.shapes and planned.prefixes_M == loader.prefixes_M
    batch = update[0].batch
    assert batch.student.tokens_BT.shape[1] == planned.accumulation == accumulation
    assert step.as_text() == lowered.step.as_text()
    prefix_MC = loader.prefix_MC("teacher")
    prefix_M = teacher_prefixes(model.graph, model.base, adapters_M, prefix_MC, spec.scale)
    teacher = teacher_signals.lower(model.graph, model.base, adapters_M, batch, prefix_M, spec.scale)
    assert teacher.as_text() == lowered.teacher.as_text()


def fails(config: config_dict.ConfigDict) -> str:
    """Returns the one line of the user's error that a config ends with."""
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
    """Checks that a plan uses all devices of a topology; a run may leave local devices idle."""
    with pytest.raises(UserError, match="data 1 x fsdp 4 x tensor 1 needs 4 devices; there are 8"):
        estimate.make_plan(tiny_config((1, 4, 1)), jax.devices(), None, None, False)


EIGHT_HEADS = FIELDS | {"num_attention_heads": 8, "num_key_value_heads": 8}


def test_a_tensor_axis_that_does_not_divide_eight_key_value_heads():
    message = fails(tiny_config((1, 1, 3), EIGHT_HEADS))
    assert message == "config.mesh.tensor = 3 does not divide the model's 8 key-value heads"


@needs_libtpu
def test_a_tensor_axis_wider_than_the_key_value_heads():
    with pytest.raises(UserError, match=r"config\.mesh\.tensor = 16 does not divide the model's 8 key-value heads"):
        estimate.make_plan(tiny_config((1, 1, 16), EIGHT_HEADS), topology_devices("v5e:4x4", 1), None, None, True)


@pytest.mark.parametrize(
    "name", ["v9:2x2", "nonsense", "v5e", "v5e:", "v5e:4", "v5e:2x2x", "v5e:2x2x2", "v5p:2x2x2x2", ":2x2", "v5p:2x2"]
)
def test_an_unknown_topology_names_those_that_are_known(name):
    for look_up in (find_chip, lambda name: topology_devices(name, 1)):
        with pytest.raises(UserError) as raised:
            look_up(name)
        assert str(raised.value) == (
            f"--topology: {name!r} is unknown; accepted: v5e:<a>x<b>, v5p:<a>x<b>x<c>, v6e:<a>x<b>, tpu7x:<a>x<b>x<c>"
        )


@pytest.fixture
def config_file(tmp_path) -> pathlib.Path:
    """Writes the tiny config as a file for --config."""
    path = tmp_path / "config.py"
    path.write_text("from tests.plan.test_plan import tiny_config\n\n\ndef get_config():\n    return tiny_config()\n")
    return path


def test_the_command_prints_the_plan_and_writes_it(config_file, tmp_path, answers, capfd):
    answers(programs.Compiled(3 * 2**30, "", 61.4), programs.Compiled(None, "Used 20.5G of 15.75G hbm", 2.0))
    status = run_command(command.main, f"--config={config_file}", f"--out={tmp_path / 'plan.json'}")
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
        (["--config.plan.samples=0"], "config.plan.samples = 0; accepted: a finite number, 1 or more"),
        (["--slices=2"], "--slices=2 is of a topology; give one, e.g. --topology=v5e:4x4"),
        (["--topology=nonsense"], "--topology: 'nonsense' is unknown"),
        (["--config.mesh.fsdp=-1", "--config.mesh.data=-1"], "accepted: at most one axis of -1"),
    ],
)
def test_a_mistake_is_one_line(config_file, arguments, message, capfd):
    status, error = run_to_error(command.main, f"--config={config_file}", *arguments, capfd=capfd)
    assert status == 2 and message in error


def test_the_command_itself_exits_with_two():
    """Runs the command once in a process, as a shell does."""
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
        topology_devices("v5e:3x5", 1)
    assert str(raised.value).startswith("--topology: v5e:3x5 is no topology of this chip") and "\n" not in str(
        raised.value
    )


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the [tpu] extra is here")
def test_without_the_compiler_its_extra_is_named():
    with pytest.raises(UserError, match=r"no compiler for TPUs .* pip install 'rdjax\[tpu\]' brings it"):
        topology_devices("v5e:2x2", 1)


@needs_libtpu
def test_a_plan_for_tpus():
    planned = estimate.make_plan(
        tiny_config((1, 2, 2)), topology_devices("v5e:2x2", 1), CHIPS["v5e"], CHIPS["v5e"].memory, True
    )
    on_device = planned["bytes_a_device"]
    assert planned["fits"] is True and planned["devices"] == 4 and "TPU v5" in planned["device_kind"]
    # bfloat16 on accelerators; the adapter stays float32.
    kernels = planned["parameters"]
    assert on_device["base"] == 2 * (kernels / 4 + 2 * 2 * 32 + 32)
    for each in planned["compiled"].values():
        assert on_device["base"] < each["peak"] < 2**30
    assert planned["floor_seconds"]["step"] == max(planned["floor_seconds"].values()) > 0


@needs_libtpu
def test_two_slices_share_out_the_data():
    devices = topology_devices("v5e:2x2", 2)
    assert len(devices) == 8
    planned = estimate.make_plan(tiny_config((2, 2, 2)), devices, CHIPS["v5e"], CHIPS["v5e"].memory, True)
    assert planned["fits"] is True and planned["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(UserError, match=r"config\.mesh\.data = 1 is not a multiple of the 2 slices"):
        estimate.make_plan(tiny_config((1, 4, 2)), devices, None, None, True)


@needs_libtpu
def test_a_model_too_large_for_the_chips_does_not_fit():
    wide = FIELDS | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    wide |= {"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 1024}
    devices, chip = topology_devices("v5e:2x2", 1), CHIPS["v5e"]
    planned = estimate.make_plan(tiny_config((1, 4, 1), wide), devices, chip, chip.memory, True)
    assert planned["bytes_a_device"]["base"] > chip.memory
    assert planned["fits"] is False
    assert planned["compiled"]["step"]["peak"] is None
    refused = planned["compiled"]["step"]["refused"]
    assert "of 15.75G hbm" in refused or "exceeds available HBM (15.75G)" in refused
    assert f"peak, step            does not fit: {refused} (compiled in" in estimate.plan_text(planned)
