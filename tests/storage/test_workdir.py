import json
import re

import pytest

from configs import base
from rdjax.config import plain_config
from rdjax.errors import UserError
from rdjax.storage.sums import SUMS
from rdjax.storage.workdir import FINGERPRINT_PARTS, PACKAGES, RECORD, check_workdir, open_workdir

INPUTS = {"model": "m", "tokenizer": "t", "data": "d"}


@pytest.fixture
def config():
    return base.get_config()


def test_a_new_and_an_empty_folder_are_accepted(tmp_path, config):
    check_workdir(tmp_path / "new" / "run", config)
    check_workdir(tmp_path, config)
    assert not any(tmp_path.iterdir())


def test_a_file_is_refused(tmp_path, config):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--workdir: .*file is a file; a folder is wanted"):
        check_workdir(tmp_path / "file", config)


def test_a_folder_of_something_else_is_refused(tmp_path, config):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds files of something else; take an empty folder"):
        check_workdir(tmp_path, config)


def test_the_same_config_resumes(tmp_path, config):
    open_workdir(tmp_path / "run", config, "rdjax.train", INPUTS)
    check_workdir(tmp_path / "run", config)


def test_another_config_is_refused_by_field(tmp_path, config):
    open_workdir(tmp_path, config, "rdjax.train", INPUTS)
    config.seed, config.train.epochs = 5, 2
    with pytest.raises(UserError, match=r"another config \(seed: 0 there, 5 here; train\.epochs: 0 there, 2 here\)"):
        check_workdir(tmp_path, config)


def test_a_run_that_ran_out_of_memory_goes_on_with_settings_that_need_less(tmp_path, config):
    open_workdir(tmp_path, config, "rdjax.train", INPUTS)
    config.eval.batch_size, config.model.remat, config.train.accumulation = 4, "full", 2
    config.train.teacher_signals, config.train.checkpoint_every = "disk", 2
    open_workdir(tmp_path, config, "rdjax.train", INPUTS)


def test_a_command_that_began_meanwhile_is_seen_under_the_lock(tmp_path, config):
    """Both found the folder free; the second to open it must not go on with the first one's checkpoints."""
    other = base.get_config()
    other.lora.rank = 4
    check_workdir(tmp_path / "run", other)
    open_workdir(tmp_path / "run", config, "rdjax.train", INPUTS)
    with pytest.raises(UserError, match=r"another config \(lora\.rank: 16 there, 4 here\)"):
        open_workdir(tmp_path / "run", other, "rdjax.train", INPUTS)


@pytest.mark.parametrize("content", ["{", "[]", '{"versions": {}}'])
def test_a_foreign_record_is_refused(tmp_path, config, content):
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(UserError, match=r"config\.json is not a run's config"):
        check_workdir(tmp_path, config)


def test_the_record_holds_config_command_versions_and_devices(tmp_path, config, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--config=my config.py", "--workdir=w"])
    open_workdir(tmp_path / "a" / "b", config, "rdjax.train", INPUTS)
    record = json.loads((tmp_path / "a" / "b" / RECORD).read_text())
    assert record["config"] == plain_config(config)
    assert (record["config"]["task"]["k"], record["config"]["lora"]["rank"]) == (config.task.k, config.lora.rank)
    assert record["command"] == "python -m rdjax.train '--config=my config.py' --workdir=w"
    assert set(record["versions"]) == {"python", *PACKAGES}
    assert record["devices"].split(" x ")[0].isdigit()


def test_resuming_leaves_the_record_alone(tmp_path, config, monkeypatch):
    open_workdir(tmp_path, config, "rdjax.train", INPUTS)
    record = tmp_path / RECORD
    before = record.read_text()
    monkeypatch.setattr("sys.argv", ["train.py", "--config=other.py"])
    open_workdir(tmp_path, config, "rdjax.train", INPUTS)
    assert record.read_text() == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": "x"}, "the model's weights or config"),
        ({"tokenizer": "x"}, "the tokenizer or its chat template"),
        ({"adapter": "x"}, "the starting adapter's weights or config"),
        ({"data": "x", "model": "y"}, "the model's weights or config, the data"),
    ],
)
def test_other_inputs_are_refused_by_name(tmp_path, config, changed, named):
    open_workdir(tmp_path, config, "rdjax.train", INPUTS)
    with pytest.raises(UserError, match=re.escape(f"on other inputs (changed since it began: {named}); take another")):
        open_workdir(tmp_path, config, "rdjax.train", INPUTS | changed)


def test_the_record_holds_the_hash_of_each_input(tmp_path, config):
    open_workdir(tmp_path, config, "rdjax.train", INPUTS)
    assert json.loads((tmp_path / RECORD).read_text())["fingerprint"] == INPUTS
    assert INPUTS.keys() < FINGERPRINT_PARTS.keys()


def test_a_record_of_an_earlier_version_resumes_with_a_note(tmp_path, config, capsys):
    """Its fingerprint is a single string."""
    open_workdir(tmp_path, config, "rdjax.train", INPUTS)
    assert capsys.readouterr().out == ""
    record = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(record | {"fingerprint": "0123abcd"}))
    (tmp_path / SUMS).unlink()
    open_workdir(tmp_path, config, "rdjax.train", INPUTS)
    assert "from an earlier version of rdjax; its model and data are not compared" in capsys.readouterr().out
