"""Tests whole runs on a random tiny model: what they write, what they train, what they measure."""

import contextlib
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import base
from rdjax import train
from rdjax.data.templates import alpaca_prompt
from rdjax.distillation import programs, stage
from rdjax.evaluation.answers import Answer
from rdjax.evaluation.judges import Judge
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.load import load_model
from rdjax.parallel.mesh import make_mesh
from rdjax.parallel.processes import EXIT_RERUN
from rdjax.run import pairs, prepare, start
from rdjax.storage.sums import SUMS
from tests import tiny
from tests.commands import ROWS, RULE, run_command, write_rows

SETTINGS = (
    "--config.task.k=0",
    "--config.train.epochs=3",
    "--config.eval.max_new_tokens=4",
    "--config.eval.batch_size=8",
    "--config.lora.rank=4",
    "--config.optimizer.learning_rate=1e-2",
)


def ruled_responses(model: pathlib.Path) -> list[str]:
    """Returns what the base says to the inputs of `ROWS` when it reads the rule."""
    loaded = load_model(str(model), "float32", make_mesh(base.get_config().mesh))
    prompts = [loaded.tokenizer(alpaca_prompt(RULE, row["input"]))["input_ids"] for row in ROWS]
    answers = generate(loaded, None, 1.0, prompts, Decoding(max_new_tokens=4), batch_size=8)
    return [loaded.tokenizer.decode(ids) for ids, _ in answers]


@pytest.fixture(scope="module")
def own_folder(model, tmp_path_factory) -> pathlib.Path:
    """Writes a task folder; the first three gold outputs of its test are what the base with the rule says."""
    root = tmp_path_factory.mktemp("mine")
    (root / "rule.md").write_text(RULE)
    for name in ("train", "valid"):
        write_rows(root / f"{name}.jsonl", ROWS)
    golds = [*ruled_responses(model)[:3], "yes", "yes"]
    write_rows(root / "test.jsonl", [{**row, "output": gold} for row, gold in zip(ROWS, golds, strict=True)])
    return root


def status_of(model, root, workdir, *overrides: str) -> int:
    """Runs `rdjax.train` in this process and returns its exit status."""
    task = (f"--config.model.path={model}", "--config.task.name=rule", f"--config.task.root={root}")
    arguments = (f"--config={base.__file__}", f"--workdir={workdir}", *task, *SETTINGS, *overrides)
    return run_command(train.main, *arguments)


def run(model, root, workdir, *overrides: str) -> dict:
    """Runs `rdjax.train` in this process and returns the scores of its eval.json."""
    assert status_of(model, root, workdir, *overrides) == 0
    return json.loads((workdir / "eval.json").read_text())["splits"]


@pytest.fixture(scope="module")
def student(model, own_folder, tmp_path_factory):
    """Returns the workdir of a finished run, and its scores."""
    workdir = tmp_path_factory.mktemp("runs") / "student"
    return workdir, run(model, own_folder, workdir)


@pytest.mark.slow
def test_a_model_with_delta_nets_is_distilled(own_folder, tmp_path, capsys):
    """From its folder to the report, resumed from what is on disk, with adapters on both kinds of layers."""
    folder = tmp_path / "model"
    tiny.write_random_checkpoint(folder, tiny.QWEN3_5 | {"max_position_embeddings": 4096})
    tiny.write_tokenizer(folder)
    targets = "--config.lora.targets=('q_proj','o_proj','in_proj_qkv','in_proj_z','out_proj')"
    scores = run(folder, own_folder, tmp_path / "run", targets)
    assert 0 < scores["test"]["student"]["kl"] < 1
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(np.abs(tensor).max() > 0 for tensor in tensors.values()), "all were trained"
    assert {name.split(".")[5] for name in tensors if ".layers.0." in name} == {"linear_attn"}
    assert {name.split(".")[5] for name in tensors if ".layers.1." in name} == {"self_attn"}
    assert "layers; the others stay" not in capsys.readouterr().out
    assert run(folder, own_folder, tmp_path / "run", targets) == scores
    run(folder, own_folder, tmp_path / "few", "--config.train.epochs=1", "--config.eval.systems=()")
    assert "config.lora.targets are in 2 of 4 layers; the others stay as they are" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_whose_last_layers_share_keys_and_values_is_distilled(own_folder, tmp_path):
    """From its folder to the report, resumed from what is on disk, with adapters on all layers."""
    folder = tmp_path / "model"
    tiny.write_random_checkpoint(folder, tiny.GEMMA4 | {"max_position_embeddings": 4096})
    tiny.write_tokenizer(folder)
    scores = run(folder, own_folder, tmp_path / "run")
    assert 0 < scores["test"]["student"]["kl"] < 1
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(np.abs(tensor).max() > 0 for tensor in tensors.values()), "all were trained"
    adapted = {layer: {name.split(".")[6] for name in tensors if f".layers.{layer}." in name} for layer in (0, 5)}
    assert adapted == {0: {"q_proj", "k_proj", "v_proj", "o_proj"}, 5: {"q_proj", "o_proj"}}
    assert run(folder, own_folder, tmp_path / "run") == scores


def test_targets_that_the_model_does_not_have_are_refused(model, own_folder, tmp_path, capfd):
    assert status_of(model, own_folder, tmp_path / "run", "--config.lora.targets=('q_proj','in_proj_qkv')") == 2
    assert "config.lora.targets: the model has no in_proj_qkv; accepted: any of q_proj," in capfd.readouterr().err


def test_workdir_holds_what_the_design_says(student):
    workdir, _ = student
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["lora"]["rank"] == 4
    assert record["command"].startswith("python -m rdjax.train --config=")
    assert {"python", "jax", "flax", "rdjax"} <= record["versions"].keys()
    assert list((workdir / "tensorboard").glob("events.*"))
    assert {path.name for path in (workdir / "adapter").iterdir()} == {
        "README.md",
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
        "rdjax_prompt.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["stage"] == "student"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert {"loss", "logit_loss", "hidden_loss", "gradient_norm", "learning_rate", "valid_loss"} <= epochs[0].keys()
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert lines[0]["stage"] == "gap" and lines[0]["kl"] > 0


def test_a_run_terminated_within_an_epoch_resumes_from_there(model, own_folder, student, tmp_path, monkeypatch, capfd):
    """After three of six updates, two an epoch: its adapter and metrics are those of a run that never stopped."""
    asked = itertools.count(1)
    with monkeypatch.context() as patch:
        signals = contextlib.nullcontext(lambda: EXIT_RERUN if next(asked) == 3 else 0)
        patch.setattr(stage, "deferred_signals", lambda: signals)
        assert status_of(model, own_folder, tmp_path / "run") == EXIT_RERUN
    assert "student is saved after update 3 of 6" in capfd.readouterr().out
    assert not (tmp_path / "run" / "adapter").exists()
    assert run(model, own_folder, tmp_path / "run") == student[1]
    ours, theirs = ((run / "adapter" / "adapter_model.safetensors") for run in (tmp_path / "run", student[0]))
    assert ours.read_bytes() == theirs.read_bytes()
    ours, theirs = ((run / "metrics.jsonl").read_text().splitlines() for run in (tmp_path / "run", student[0]))
    assert sorted(ours) == sorted(theirs)


def test_a_finished_run_of_an_earlier_version_is_shown(model, own_folder, student, tmp_path, capfd):
    """Its record has one hash for all inputs, and its eval.json names no metric."""
    workdir = tmp_path / "run"
    shutil.copytree(student[0], workdir)
    (workdir / "report.html").unlink()
    (workdir / SUMS).unlink()
    for name, change in (("config.json", {"fingerprint": "0123abcd"}), ("eval.json", {"metric": None})):
        content = json.loads((workdir / name).read_text()) | change
        content = {field: value for field, value in content.items() if value is not None}
        (workdir / name).write_text(json.dumps(content))
    assert run(model, own_folder, workdir) == student[1]
    printed = capfd.readouterr().out
    assert "from an earlier version of rdjax" in printed and "is finished" in printed
    assert "test exact_match" in printed and (workdir / "report.html").exists()


def test_a_model_that_was_replaced_in_place_is_refused(own_folder, tmp_path, capfd):
    """Another base of the same shape, as merging an adapter makes it: embedding and head stay."""
    base_model = tiny.write_tokenizer(
        tiny.write_random_checkpoint(tmp_path / "base", tiny.LLAMA2 | {"max_position_embeddings": 4096})
    )
    settings = (base_model, own_folder, tmp_path / "run", "--config.eval.systems=()", "--config.train.epochs=1")
    assert status_of(*settings) == 0
    tensors = load_file(base_model / "model.safetensors")
    merged = {name: tensor + 0.1 if "self_attn" in name else tensor for name, tensor in tensors.items()}
    tiny.write_tensors(base_model, merged)
    assert status_of(*settings) == 2
    assert "changed since it began: the model's weights or config); take another folder" in capfd.readouterr().err
    tiny.write_tensors(base_model, tensors)
    tiny.write_tokenizer(base_model, chat_template="{{ messages }}")
    assert status_of(*settings) == 2
    assert "changed since it began: the tokenizer or its chat template); take" in capfd.readouterr().err


def test_a_chat_template_that_was_replaced_in_place_is_refused(model, own_folder, tmp_path, capfd):
    template = tmp_path / "chat.jinja"
    settings = (model, own_folder, tmp_path / "run", "--config.eval.systems=()", "--config.train.epochs=1")
    settings += ("--config.task.template=chat", f"--config.task.chat_template={template}")
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template.write_text(source + "{% if add_generation_prompt %}<assistant>{% endif %}")
    assert status_of(*settings) == 0
    template.write_text(template.read_text().replace("<", "["))
    assert status_of(*settings) == 2
    assert "changed since it began: the tokenizer or its chat template); take" in capfd.readouterr().err


def test_online_signals_train_the_same_adapter(model, own_folder, student, tmp_path):
    run(model, own_folder, tmp_path / "run", "--config.train.teacher_signals=online", "--config.eval.systems=()")
    online, cached = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path / "run", student[0])
    )
    for name in cached:
        np.testing.assert_allclose(online[name], cached[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("platform", "beside"), [("cpu", True), ("gpu", False)])
def test_every_program_is_compiled_once(model, own_folder, tmp_path, caplog, monkeypatch, platform, beside):
    """Beside the teacher's pass; on a GPU, where the compiler measures kernels, with nothing else running."""
    monkeypatch.setattr(programs, "device_of", lambda mesh: types.SimpleNamespace(platform=platform))
    jax.clear_caches()
    before = jax.config.jax_log_compiles
    jax.config.update("jax_log_compiles", True)  # jax.log_compiles() is for the calling thread alone
    try:
        run(model, own_folder, tmp_path / "run", "--config.eval.systems=()", "--config.eval.gap_rows=0")
    finally:
        jax.config.update("jax_log_compiles", before)
    finished = [record for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    for name in ("jit(train_step)", "jit(evaluate_loss)"):
        (compiled,) = [record for record in finished if name in record.getMessage()]
        assert (compiled.thread != threading.get_ident()) is beside
    stages = [json.loads(line)["stage"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["student"] * 3, "and no gap was measured"


def test_scores_of_every_system(student):
    workdir, splits = student
    systems = splits["test"]
    assert list(systems) == ["base", "base_with_rule", "student", "student_with_rule"]
    assert systems["base_with_rule"]["exact_match"] == 3 / 5
    for name, scores in systems.items():
        assert set(scores) == {"exact_match", "gap_closed", "kl", "n", "mean_response_tokens"}
        assert (workdir / "report.html").exists()
        lines = (workdir / "predictions" / f"test.{name}.jsonl").read_text().splitlines()
        assert len(lines) == scores["n"] == 5
    assert json.loads((workdir / "eval.json").read_text())["metric"] == {"test": "exact_match"}
    assert systems["base"]["gap_closed"] == 0
    assert systems["base_with_rule"]["gap_closed"] == pytest.approx(1, abs=1e-5)
    assert systems["student"]["kl"] != systems["base"]["kl"]


def test_prompts_of_predictions_hold_the_rule_where_the_system_reads_it(student):
    workdir, _ = student

    def prompt(system: str) -> str:
        return json.loads((workdir / "predictions" / f"test.{system}.jsonl").read_text().splitlines()[0])["prompt"]

    assert RULE in prompt("base_with_rule") and RULE not in prompt("student")


@pytest.mark.slow
def test_baselines_and_the_enhanced_teacher_keep_their_adapters(model, own_folder, tmp_path):
    systems = '--config.eval.systems=("student","enhanced_with_rule","inst_tune_without_rule")'
    splits = run(model, own_folder, tmp_path / "run", "--config.method=rule_distill_enhanced", systems)
    assert list(splits["test"]) == ["student", "enhanced_with_rule", "inst_tune_without_rule"]
    adapters = tmp_path / "run" / "adapters"
    assert {path.name for path in adapters.iterdir()} == {"enhanced_teacher", "inst_tune_without_rule"}
    teacher = load_file(adapters / "enhanced_teacher" / "adapter_model.safetensors")
    student = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert max(np.abs(teacher[name] - student[name]).max() for name in teacher) > 1e-3


def test_teacher_writes_the_responses_of_unlabelled_inputs(model, tmp_path):
    root = tmp_path / "unlabelled"
    root.mkdir()
    (root / "rule.md").write_text(RULE)
    write_rows(root / "train.jsonl", [{"input": row["input"]} for row in ROWS])
    workdir = tmp_path / "run"
    systems = "--config.eval.systems=()"
    assert run(model, root, workdir, "--config.task.responses=teacher", systems) == {}
    written = [json.loads(line) for line in (workdir / "responses" / "train.jsonl").read_text().splitlines()]
    assert len(written) == 5 and all(line["ids"] for line in written)
    assert (workdir / "adapter" / "adapter_model.safetensors").exists()


def test_only_confirmed_responses_of_the_teacher_stay(model, own_folder, tmp_path, monkeypatch, capfd):
    """The teacher's answers are replaced, because the tiny model never answers yes."""
    say = ["yes", "no", "yes", "maybe", "yes"]

    def given(model, system, prompts, options, *rest, **more):
        texts = say[: len(prompts)]
        ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [Answer(own, True, text) for own, text in zip(ids, texts, strict=True)]

    monkeypatch.setattr(pairs, "answer", given)
    settings = ("--config.task.responses=teacher", "--config.task.only_confirmed=True", "--config.eval.systems=()")
    run(model, own_folder, tmp_path / "run", *settings)
    assert "in 3 of 5 rows, which are kept" in capfd.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "run/responses/train.jsonl").read_text().splitlines()]
    assert [line["response"] for line in written] == say and {line["gold"] for line in written} == {"yes"}


def test_sampled_responses_follow_the_seed(model, own_folder, tmp_path):
    def responses(name: str, seed: int) -> str:
        settings = ("--config.task.responses=teacher", "--config.task.temperature=1.0", "--config.eval.systems=()")
        run(model, own_folder, tmp_path / name, *settings, f"--config.seed={seed}")
        return (tmp_path / name / "responses" / "train.jsonl").read_text()

    assert responses("one", 1) == responses("same", 1) != responses("other", 2)


def test_a_failing_judge_keeps_the_predictions_and_says_how_to_go_on(model, own_folder, tmp_path, monkeypatch, capfd):
    def broken(responses, golds):
        raise RuntimeError("the judge is ill")

    judges_of = prepare.judges_of
    monkeypatch.setattr(prepare, "judges_of", lambda *given: {"test": Judge("ill", "ill", broken)})
    with pytest.raises(AssertionError):  # exit status 2
        run(model, own_folder, tmp_path / "run")
    error = capfd.readouterr().err
    assert (
        "the judge ill failed on test, system base: RuntimeError: the judge is ill; the predictions are kept" in error
    )
    assert "python -m rdjax.train --config=" in error
    assert len(list((tmp_path / "run" / "predictions").glob("test.*.jsonl"))) == 4
    monkeypatch.setattr(prepare, "judges_of", judges_of)

    def no_more(*given, **rest):
        raise AssertionError("the predictions are there")

    monkeypatch.setattr("rdjax.evaluation.answers.generate", no_more)
    # The gap before training is measured anew, by answering: not what this is about.
    monkeypatch.setattr(start, "gap_to_close", lambda *given: 1.0)
    assert run(model, own_folder, tmp_path / "run")["test"]["student"]["n"] == 5


def test_a_run_starts_from_an_existing_adapter(model, own_folder, student, tmp_path):
    adapter = student[0] / "adapter"
    rate = "--config.optimizer.learning_rate=1e-12"
    splits = run(model, own_folder, tmp_path / "run", f"--config.model.adapter={adapter}", rate)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "run/adapter"))
    for name in before:
        np.testing.assert_allclose(after[name], before[name], atol=1e-8)
    # Its base is the base with that adapter: what the first run's student was.
    assert splits["test"]["base"]["mean_response_tokens"] == student[1]["test"]["student"]["mean_response_tokens"]


@pytest.mark.slow
def test_a_sharded_run_ends_like_one_on_a_single_device(model, own_folder, student, tmp_path):
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    splits = run(model, own_folder, tmp_path / "run", *mesh)
    assert splits["test"].keys() == student[1]["test"].keys()
    for system, alone in student[1]["test"].items():
        assert splits["test"][system] == pytest.approx(alone, rel=1e-3, abs=1e-5), system


def test_export_merges_the_adapter(model, student, tmp_path):
    command = [sys.executable, "-m", "rdjax.export", f"--model={model}", f"--adapter={student[0]}/adapter"]
    kept = {"preprocessor_config.json": "{}", "additional_chat_templates/rag.jinja": "{{ messages }}"}
    base_model = shutil.copytree(model, tmp_path / "base")
    (base_model / "additional_chat_templates").mkdir()
    for name, text in (kept | {"pytorch_model.bin": "weights", "model.safetensors.index.json": "{}"}).items():
        (base_model / name).write_text(text)
    command[3] = f"--model={base_model}"
    trained = shutil.copytree(student[0] / "adapter", tmp_path / "adapter")
    (trained / "chat_template.jinja").write_text("{{ 'the template of its training' }}")
    (base_model / "README.md").write_text("the card of the base")
    (base_model / "tokenizer.json").chmod(0o444)  # as in a store that several people read
    prompt = trained / "rdjax_prompt.json"
    prompt.write_text(json.dumps(json.loads(prompt.read_text()) | {"eos_token_id": [7, 5]}))
    (trained / "SHA256SUMS").unlink()  # the files are changed on purpose
    command[4] = f"--adapter={trained}"
    done = subprocess.run([*command, f"--out={tmp_path}/merged"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = {
        str(path.relative_to(tmp_path / "merged")) for path in (tmp_path / "merged").rglob("*") if path.is_file()
    }
    assert kept.keys() | {"model.safetensors", "config.json", "tokenizer.json", "rdjax_prompt.json"} <= written
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == "{{ 'the template of its training' }}"
    assert not written & {"pytorch_model.bin", "model.safetensors.index.json", "README.md"}
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"] == [7, 5]
    assert not (tmp_path / "merged.part").exists()
    name = "model.layers.1.self_attn.q_proj.weight"
    lora = {part: f"base_model.model.model.layers.1.self_attn.q_proj.lora_{part}.weight" for part in "AB"}
    adapter = load_file(student[0] / "adapter" / "adapter_model.safetensors")
    change = adapter[lora["B"]] @ adapter[lora["A"]] * (16 / 4)
    merged, plain = load_file(tmp_path / "merged/model.safetensors"), load_file(model / "model.safetensors")
    np.testing.assert_allclose(merged[name], plain[name] + change, atol=1e-5)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    ("name", "folder"), [("sentiment", "bob_sentiment_experiments"), ("safety", "jailbreak_experiments")]
)
def test_published_files_run_on_a_random_model(model, published_data, tmp_path, name, folder):
    splits = run(
        model,
        published_data / folder,
        tmp_path / "run",
        f"--config.task.name={name}",
        "--config.task.k=8",
        "--config.task.max_length=3000",
        "--config.train.epochs=1",
        "--config.train.accumulation=4",
        "--config.eval.limit=2",
    )
    present = {"test_on_topic", "test_elsewhere"} if name == "sentiment" else set()
    assert set(splits) == present
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    # The judges are measured on the training outputs, also where the test files are absent.
    judged = present or {"test_harmful", "test_helpful"}
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["judge_errors"].keys() == judged
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How often the judges are wrong" in page
    assert all(split.replace("_", " ") in page for split in judged)
