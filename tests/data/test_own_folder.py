"""Checks how a user's own task folder is read, and what is refused."""

import json
import pathlib

import pytest

from configs.base import get_config
from rdjax.data.tasks import load_task
from rdjax.errors import UserError

ROWS = [{"input": "one", "output": "1"}, {"input": "two"}, {"input": "three", "output": "", "instruction": "Count."}]


def write_jsonl(path: pathlib.Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def splits_of(root: pathlib.Path, k: int = 0, one_wording: bool = False):
    return task_of(root, k, one_wording).splits


def task_of(root: pathlib.Path, k: int = 0, one_wording: bool = False, inputs: str = "file", **more):
    config = get_config().task
    config.update({"name": "rule", "root": str(root), "k": k, "one_wording": one_wording, "inputs": inputs, **more})
    return load_task(config, seed=0)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "rule.md").write_text("  Answer in digits.\n\n")
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    return tmp_path


def test_rule_and_train_are_enough(root):
    splits = splits_of(root)
    assert set(splits) == {"train"}
    assert splits["train"]["rule"][:] == ["Answer in digits."] * 3


def test_a_rule_that_is_to_be_removed_stands_in_the_tests_alone(root):
    for name in ("valid", "test", "retain"):
        write_jsonl(root / f"{name}.jsonl", ROWS[:1])
    splits = task_of(root, remove_rule=True).splits
    rules = {name: set(part["rule"]) for name, part in splits.items()}
    kept = {"Answer in digits."}
    assert rules == {"train": {""}, "valid": {""}, "test": kept, "retain": kept}
    (root / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"remove_rule needs inputs on the rule: .*train.jsonl"):
        task_of(root, inputs="auto", remove_rule=True)


def test_inputs_are_written_where_asked_for_or_where_there_are_none(root):
    assert task_of(root).wordings == () == task_of(root, inputs="auto").wordings
    asked = task_of(root, inputs="written")
    assert asked.wordings == ("Answer in digits.",) and set(asked.splits) == {"train"}
    (root / "train.jsonl").unlink()
    assert task_of(root, inputs="auto").wordings == ("Answer in digits.",)
    assert set(task_of(root, inputs="auto").splits) == set()


def test_output_and_instruction_may_be_left_out(root):
    train = splits_of(root)["train"]
    assert train["output"][:] == ["1", "", ""]
    assert train["instruction"][:] == ["", "", "Count."]


def test_all_files_become_splits_of_their_name(root):
    names = {"valid", "retain", "near_misses", "near_misses_train", "test", "test_hard"}
    for name in names:
        write_jsonl(root / f"{name}.jsonl", [{"input": name}])
    splits = splits_of(root)
    assert set(splits) == {"train", *names}
    assert {splits[name]["input"][0] for name in names} == names


def test_several_wordings_are_dealt_in_turn(root):
    for name, text in (("rule.b", "Third."), ("rule.a", "Second."), ("rule", "First.")):
        (root / f"{name}.md").write_text(text)
    write_jsonl(root / "test.jsonl", ROWS[:1])
    splits = splits_of(root)
    assert splits["train"]["rule"][:] == ["First.", "Second.", "Third."]
    assert splits["test"]["rule"][:] == ["First."]


def test_one_wording_of_several(root):
    (root / "rule.md").unlink()
    for name, text in (("b", "Second."), ("a", "First.")):
        (root / f"rule.{name}.md").write_text(text)
    assert set(splits_of(root, one_wording=True)["train"]["rule"]) == {"First."}


def test_k_takes_the_first_rows_of_train_alone(root):
    write_jsonl(root / "valid.jsonl", ROWS)
    splits = splits_of(root, k=2)
    assert splits["train"]["input"][:] == ["one", "two"]
    assert len(splits["valid"]) == 3


def test_k_of_zero_takes_all(root):
    assert len(splits_of(root, k=0)["train"]) == 3


def test_k_beyond_the_rows_is_an_error(root):
    with pytest.raises(UserError, match=r"config\.task\.k = 4: .*train\.jsonl has 3 rows"):
        splits_of(root, k=4)


def test_k_beyond_the_rows_counts_those_that_are_to_be_written(root):
    assert len(task_of(root, k=99, inputs="written").splits["train"]) == 3


def test_blank_lines_are_skipped_but_counted(root):
    (root / "train.jsonl").write_text('{"input": "a"}\n\n   \n{"input": "b"}\n')
    assert splits_of(root)["train"]["where"][:] == [f"{root / 'train.jsonl'}, line {line}" for line in (1, 4)]


def test_text_is_utf8(root):
    (root / "rule.md").write_text("Grüße, 世界", encoding="utf-8")
    (root / "train.jsonl").write_text('{"input": "naïve 🎉"}\n', encoding="utf-8")
    row = splits_of(root)["train"][0]
    assert (row["rule"], row["input"]) == ("Grüße, 世界", "naïve 🎉")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "b"', r"train\.jsonl, line 2: invalid JSON"),
        ('{"output": "b"}', r"train\.jsonl, line 2: the field input is missing"),
        ('{"input": 3}', r"train\.jsonl, line 2: the field input must be a string"),
        ('{"input": "b", "output": ["c"]}', r"train\.jsonl, line 2: the field output must be a string"),
        ('["b"]', r"train\.jsonl, line 2: must be an object with the fields input"),
        ('{"input": null, "output": "98."}', r"train\.jsonl, line 2: the field input is null"),
        ('{"input": " ", "output": "98."}', r"train\.jsonl, line 2: the field input is empty"),
        ('{"messages": [{"role": "user", "content": ""}]}', r"line 2: the last message of the user is empty"),
        ('{"messages": [{"role": "user", "content": "b", "name": "Ann"}]}', r"line 2: messages has name, which"),
        ('{"input": "a", "output": "98.", "input": "b"}', r"line 2: invalid JSON \(the field 'input' is there twice"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(root, line, message):
    (root / "train.jsonl").write_text('{"input": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        splits_of(root)


def test_missing_and_empty_files(root):
    (root / "train.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"train\.jsonl: holds no rows"):
        splits_of(root)
    (root / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"train\.jsonl: not found"):
        splits_of(root)
    (root / "rule.md").write_text(" \n")
    with pytest.raises(UserError, match=r"rule\.md: is empty"):
        splits_of(root)
    (root / "rule.md").unlink()
    with pytest.raises(UserError, match=r"rule\.md: not found; .* rule\.md and, unless the model writes"):
        splits_of(root)


@pytest.mark.parametrize(
    "name",
    [
        "vaild.jsonl",
        "near_miss.jsonl",
        "heldout.jsonl",
        "train.json",
        "test_hard.csv",
        "train.JSONL",
        "valid.ndjson",
        "train.jsonl.txt",
        "train.v2.jsonl",
    ],
)
def test_files_of_rows_that_are_not_read_are_refused(root, name):
    (root / "notes.json").write_text("{}")  # of no split
    splits_of(root)
    (root / name).write_text("{}")
    with pytest.raises(
        UserError, match=rf"{name}: is not read; accepted: train\.jsonl, valid\.jsonl, retain\.jsonl, near"
    ):
        splits_of(root)


@pytest.mark.parametrize("name", ["rule_2.md", "rule-2.md", "rules.md", "rule.txt"])
def test_wordings_that_are_not_read_are_refused(root, name):
    (root / name).write_text("Another wording.")
    with pytest.raises(UserError, match=rf"{name}: is not read; accepted: rule\.md, and rule\.<name>\.md"):
        splits_of(root)


def test_the_root_must_be_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"config\.task\.root: .*nowhere is not a folder"):
        splits_of(tmp_path / "nowhere")


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_a_line_ends_at_a_line_feed_alone(root, mark):
    (root / "train.jsonl").write_text(f'{{"input": "a{mark}b"}}\n', encoding="utf-8")
    assert splits_of(root)["train"]["input"][:] == [f"a{mark}b"]


@pytest.mark.parametrize("name", ["valid", "test", "retain", "near_misses"])
def test_an_empty_file_is_an_error(root, name):
    (root / f"{name}.jsonl").write_text("\n")
    with pytest.raises(UserError, match=rf"{name}\.jsonl: holds no rows"):
        splits_of(root)


@pytest.mark.parametrize("name", ["rule.md", "train.jsonl"])
def test_text_that_is_no_utf8_is_an_error(root, name):
    (root / name).write_bytes('{"input": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name}.*UTF-8"):
        splits_of(root)


@pytest.mark.parametrize("value", ["0", "false", "[]"])
def test_an_empty_value_that_is_no_string_is_an_error(root, value):
    (root / "train.jsonl").write_text(f'{{"input": "a", "output": {value}}}\n')
    with pytest.raises(UserError, match=r"line 1: the field output must be a string"):
        splits_of(root)
