"""A user's mistake ends with exit status 2 and one line, and leaves the workdir alone."""

import json
import pathlib
import subprocess
import sys

import pytest

from configs import base
from rdjax import train
from tests import tiny
from tests.commands import run_to_error

CONFIG = base.__file__
RULE = "Answer with the number."
RULES = [{"instruction": RULE, "input": text, "output": "7."} for text in ("one", "two")]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.write_random_checkpoint(folder, tiny.LLAMA2)
    return tiny.write_tokenizer(folder)


@pytest.fixture
def broken_model(model, tmp_path) -> pathlib.Path:
    """A copy of the model, to be broken."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def own_folder(tmp_path) -> pathlib.Path:
    """A user's task folder without a fault."""
    root = tmp_path / "mine"
    root.mkdir()
    (root / "rule.md").write_text(RULE)
    (root / "train.jsonl").write_text('{"input": "one", "output": "1"}\n{"input": "two", "output": "2"}\n')
    return root


@pytest.fixture
def published(tmp_path) -> pathlib.Path:
    """A task folder in the published form without a fault."""
    root = tmp_path / "published"
    root.mkdir()
    (root / "train_full_2shot.json").write_text(json.dumps(RULES, indent=0))
    (root / "train_no_2shot.json").write_text(json.dumps([{**row, "instruction": ""} for row in RULES]))
    return root


@pytest.fixture
def fails(model, tmp_path, capfd):
    """Runs `rdjax.train` with overrides of the base config, expects a user's error and returns its line."""

    def run(*overrides: str) -> str:
        workdir = tmp_path / "run"
        arguments = (f"--config={CONFIG}", f"--workdir={workdir}", f"--config.model.path={model}", *overrides)
        status, error = run_to_error(train.main, *arguments, capfd=capfd)
        assert status == 2
        assert not workdir.exists()
        return error

    return run


@pytest.fixture
def fails_on(fails):
    """Like `fails`, on a task folder: ("rule", folder) or ("safety", folder)."""

    def run(name: str, root: pathlib.Path, *overrides: str, k: int = 2) -> str:
        return fails(f"--config.task.name={name}", f"--config.task.root={root}", f"--config.task.k={k}", *overrides)

    return run


def test_a_missing_task_folder(fails_on, tmp_path):
    assert f"config.task.root: {tmp_path / 'nowhere'} is not a folder" in fails_on("rule", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["rule.md", "train.jsonl"])
def test_a_missing_file_of_an_own_folder(fails_on, own_folder, name):
    (own_folder / name).unlink()
    error = fails_on("rule", own_folder)
    assert f"{own_folder / name}: not found; a task folder holds rule.md and, unless the model writes" in error


def test_a_k_that_is_not_there(fails_on, published):
    error = fails_on("safety", published, k=16)
    assert "config.task.k = 16" in error and "train_full_16shot.json not found; there: 2" in error


def test_a_k_beyond_the_rows(fails_on, own_folder):
    assert "config.task.k = 9" in (error := fails_on("rule", own_folder, k=9))
    assert f"{own_folder / 'train.jsonl'} has 2 rows" in error


def test_a_missing_counterpart(fails_on, published):
    (published / "train_no_2shot.json").unlink()
    assert f"{published / 'train_no_2shot.json'}: not found" in fails_on("safety", published)


def test_invalid_json_names_file_and_line(fails_on, published):
    path = published / "train_full_2shot.json"
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace(":", "=")
    path.write_text("\n".join(lines))
    assert f"{path}: line 4: invalid JSON" in fails_on("safety", published)


def test_an_invalid_json_line_names_file_and_line(fails_on, own_folder):
    path = own_folder / "train.jsonl"
    path.write_text(path.read_text() + '{"input": three}\n')
    assert f"{path}, line 3: invalid JSON" in fails_on("rule", own_folder)


def test_a_missing_field_names_file_and_row(fails_on, published):
    path = published / "train_no_2shot.json"
    path.write_text(json.dumps([RULES[0], {"instruction": "", "input": "two"}]))
    assert f"{path}, row 1: the field output is missing" in fails_on("safety", published)


def test_lists_that_do_not_align_name_the_row(fails_on, published):
    path = published / "train_no_2shot.json"
    path.write_text(path.read_text().replace("two", "three"))
    error = fails_on("safety", published)
    assert "train_full_2shot.json, row 1: does not align with train_no_2shot.json" in error
    assert "they must agree in all but the rule" in error


def test_an_empty_output_names_file_and_line(fails_on, own_folder):
    path = own_folder / "train.jsonl"
    path.write_text(path.read_text().replace('"2"', '""'))
    assert f"{path}, line 2: the field output is empty" in fails_on("rule", own_folder)


def test_a_long_prompt_names_row_and_limit(fails_on, own_folder):
    (own_folder / "rule.md").write_text("very " * 200 + RULE)
    error = fails_on("rule", own_folder, "--config.task.max_length=400")
    assert f"{own_folder / 'train.jsonl'}, line 1: " in error and "tokens, over task.max_length = 400" in error
    assert "nothing is cut" in error


def test_a_response_that_the_limit_would_cut_is_an_error(fails_on, own_folder):
    path = own_folder / "train.jsonl"
    path.write_text(path.read_text().replace('"2"', f'"{"2" * 500}"'))
    error = fails_on("rule", own_folder, "--config.task.max_length=400")
    assert f"{path}, line 2: prompt and response take" in error and "task.max_length = 400" in error


def test_no_room_for_the_teachers_responses_is_found_at_once(fails_on, own_folder):
    (own_folder / "train.jsonl").write_text('{"input": "one"}\n')
    (own_folder / "valid.jsonl").write_text('{"input": "two"}\n')
    error = fails_on("rule", own_folder, "--config.task.responses=teacher", "--config.task.max_length=280", k=1)
    assert f"{own_folder / 'train.jsonl'}, line 1: " in error and "task.max_length = 280" in error


def test_a_long_test_row_is_found_before_training(fails_on, own_folder):
    (own_folder / "test.jsonl").write_text(json.dumps({"input": "long " * 200}) + "\n")
    error = fails_on("rule", own_folder)
    assert f"{own_folder / 'test.jsonl'}, line 1: " in error
    assert "the model's max_position_embeddings = 512" in error


def test_a_tokenizer_larger_than_the_embedding(fails, broken_model):
    tiny.write_random_checkpoint(broken_model, tiny.LLAMA2 | {"vocab_size": 250})
    error = fails(f"--config.model.path={broken_model}")
    assert f"{broken_model}: the tokenizer has 258 tokens, the embedding only 250 rows" in error


@pytest.mark.parametrize("content", [b"not safetensors", b""])
def test_a_corrupt_safetensors_file(fails, broken_model, content):
    path = broken_model / "model.safetensors"
    path.write_bytes(content)
    assert f"{path}: not a readable safetensors file" in fails(f"--config.model.path={broken_model}")


def test_a_truncated_safetensors_file(fails, broken_model):
    path = broken_model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: not a readable safetensors file" in fails(f"--config.model.path={broken_model}")


def test_a_model_folder_without_tokenizer(fails, broken_model):
    for path in broken_model.glob("tokenizer*"):
        path.unlink()
    assert f"{broken_model}: no readable tokenizer" in fails(f"--config.model.path={broken_model}")


def test_an_adapter_that_is_not_there(fails, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    error = fails(f"--config.model.adapter={folder}")
    assert f"{folder / 'adapter_config.json'}: not found; an adapter folder holds" in error


def test_an_unknown_field(fails):
    assert "nope" in fails("--config.nope=1")


def test_an_unknown_field_of_a_section(fails):
    assert "nope" in fails("--config.train.nope=1")


@pytest.mark.parametrize(("override", "named"), [("seed=x", "x"), ("train.epochs=many", "many")])
def test_a_value_of_the_wrong_type(fails, override, named):
    error = fails(f"--config.{override}")
    assert f"config.{override.split('=')[0]}" in error and named in error


def test_an_unknown_flag(fails):
    assert "wrkdir" in fails("--wrkdir=x")


def test_an_unknown_method_names_the_known_ones(fails):
    error = fails("--config.method=magic")
    assert "config.method = 'magic' is unknown; accepted: rule_distill_base, rule_distill_enhanced, inst_tune" in error


def test_an_unknown_system_names_the_known_ones(fails):
    error = fails("--config.eval.systems=('base', 'nobody')")
    assert "config.eval.systems: 'nobody' is unknown; accepted: base, base_with_rule, student" in error


def test_weight_and_beta_together(fails):
    error = fails("--config.loss.hidden_weight=2.44", "--config.loss.hidden_beta=10000")
    assert "config.loss.hidden_weight and config.loss.hidden_beta are both set; accepted: one of the two" in error


def test_a_mesh_bigger_than_the_devices(fails):
    error = fails("--config.mesh.data=1000", "--config.mesh.tensor=2")
    assert "config.mesh: data 1000 x fsdp 1 x tensor 2 needs 2000 devices; there are " in error


def test_a_mesh_that_does_not_divide_the_model(fails):
    error = fails("--config.mesh.fsdp=3")
    assert "config.mesh.fsdp = 3 does not divide the model's 32 width" in error


def test_a_missing_config_file(tmp_path, capfd):
    arguments = [f"--config={tmp_path / 'none.py'}", f"--workdir={tmp_path / 'run'}"]
    status, error = run_to_error(train.main, *arguments, capfd=capfd)
    assert status == 2 and "none.py" in error


def test_a_config_that_cannot_be_imported(tmp_path, capfd):
    path = tmp_path / "mine.py"
    path.write_text("from my_configs import base\n")
    status, error = run_to_error(train.main, f"--config={path}", f"--workdir={tmp_path / 'run'}", capfd=capfd)
    assert status == 2 and "my_configs" in error


def test_an_override_without_dashes_is_not_dropped(fails):
    assert "config.seed=3" in fails("config.seed=3", "--config.method=magic")


def test_no_config(tmp_path, capfd):
    status, error = run_to_error(train.main, f"--workdir={tmp_path / 'run'}", capfd=capfd)
    assert status == 2 and "--config is missing; e.g. --config=configs/quickstart.py" in error
    assert not (tmp_path / "run").exists()


def test_no_workdir(capfd):
    status, error = run_to_error(train.main, f"--config={CONFIG}", capfd=capfd)
    assert status == 2 and "--workdir is missing" in error


def test_a_workdir_that_is_a_file(tmp_path, capfd):
    path = tmp_path / "file"
    path.write_text("mine")
    status, error = run_to_error(train.main, f"--config={CONFIG}", f"--workdir={path}", capfd=capfd)
    assert status == 2 and f"--workdir: {path} is a file; a folder is wanted" in error
    assert path.read_text() == "mine"


def test_a_workdir_inside_a_file(model, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path / 'file' / 'run'}", f"--config.model.path={model}"]
    status, error = run_to_error(train.main, *arguments, capfd=capfd)
    assert status == 2 and f"{tmp_path / 'file'}" in error


def test_a_workdir_of_another_run(tmp_path, capfd):
    record = tmp_path / "config.json"
    record.write_text(json.dumps({"config": base.get_config().to_dict() | {"seed": 3}}, default=list))
    before = record.read_text()
    status, error = run_to_error(train.main, f"--config={CONFIG}", f"--workdir={tmp_path}", capfd=capfd)
    assert status == 2 and f"{tmp_path} holds a run with another config (seed: 3 there, 0 here" in error
    assert "take another folder" in error
    assert list(tmp_path.iterdir()) == [record] and record.read_text() == before


def test_the_command_itself_exits_with_two(tmp_path):
    """Once in a process of its own: what a shell sees."""
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", "--config.method=magic"]
    ended = subprocess.run(
        [sys.executable, "-m", "rdjax.train", *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: config.method = 'magic' is unknown")
    assert not (tmp_path / "run").exists()
