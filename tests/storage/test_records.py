"""Records: kills on the way leave the old or the new one, damage and wrong fields are one line."""

import json
import pathlib

import pytest

from rdjax.errors import UserError
from rdjax.storage import records
from rdjax.storage.metrics import MetricsLog, read_metrics
from rdjax.storage.records import Prediction, Results, RunRecord, read_record, read_records, write_record, write_records
from rdjax.storage.sums import SUMS

LINE = {"input": "a", "gold": "", "response": "b", "ids": [1, 2], "ended": True, "prompt": "p", "correct": None}


@pytest.mark.parametrize("calls", range(8))
def test_a_kill_while_writing_leaves_a_record_that_is_read(tmp_path, monkeypatch, calls):
    """Writing renames three files; a kill before any of these leaves the old record or the new one."""
    path = tmp_path / "file.jsonl"
    write_records(path, [LINE])
    replace, counted = pathlib.Path.replace, iter(range(100))

    def killed(self, target):
        if next(counted) == calls:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(pathlib.Path, "replace", killed)
    new = [LINE | {"correct": True}]
    if calls < 3:
        with pytest.raises(KeyboardInterrupt):
            write_records(path, new)
    else:
        write_records(path, new)
    monkeypatch.undo()
    assert read_records(path, Prediction) in ([LINE], new)
    write_records(path, new)
    assert read_records(path, Prediction) == new
    assert len((tmp_path / SUMS).read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["1"]}, r"line 2: Expected `int`, got `str` - at `\$\.ids\[0\]`"),
        ({"ids": [-1]}, r"line 2: Expected `int` >= 0"),
        ({"ended": 1}, r"line 2: Expected `bool`"),
        ({"response": None}, r"line 2: Expected `str`"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, change, message):
    path = tmp_path / "file.jsonl"
    write_records(path, [LINE, LINE | change])
    with pytest.raises(UserError, match=message):
        read_records(path, Prediction)


def test_a_missing_field_is_named(tmp_path):
    path = tmp_path / "file.jsonl"
    write_records(path, [{name: value for name, value in LINE.items() if name != "ids"}])
    with pytest.raises(UserError, match="line 1: Object missing required field `ids`"):
        read_records(path, Prediction)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"config": 1}', b"\xff", b"[" * 100_000, b"\xfe\xff\0{"])
def test_a_record_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        read_record(tmp_path / "config.json", RunRecord)


def test_scores_of_an_earlier_version_are_read(tmp_path):
    content = {"splits": {"test": {"student": {"exact_match": 1, "gap_closed": None}}}}
    write_record(tmp_path / "eval.json", content)
    assert read_record(tmp_path / "eval.json", Results) == content


def test_every_form_reads_its_own_defaults():
    for form in (records.Sweep, records.Results, records.RunRecord):
        assert form.__doc__


@pytest.fixture
def metrics(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("student", 1, {"loss": 0.5})
    log.write("student", 2, {"loss": 0.25})
    log.close()
    return log


def test_a_line_that_a_kill_has_cut_off_is_left_out(metrics):
    with metrics.path.open("a") as file:
        file.write('{"stage": "stu')
    assert [line["step"] for line in read_metrics(metrics.path)] == [1, 2]
    metrics.truncate("student", 1)
    assert metrics.path.read_text() == json.dumps({"stage": "student", "step": 1, "loss": 0.5}) + "\n"


@pytest.mark.parametrize("line", ["xx}", '{"stage": "s"}', '{"stage": "s", "step": "1"}', "[1]", "[" * 100_000])
def test_a_damaged_line_of_metrics_is_named(metrics, line):
    metrics.path.write_text(f"{line}\n" + metrics.path.read_text())
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1"):
        metrics.truncate("student", 1)
