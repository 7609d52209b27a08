"""Checks how published task files are read: hand-made ones of that layout, and the real ones if there is a copy."""

import json
import pathlib

import pytest
from ml_collections import config_dict

from rdjax.data.rules.arithmetic import PAPER_RULE
from rdjax.data.tasks import load_task
from rdjax.data.templates import DEMOS_LEAD, join_instruction
from rdjax.errors import UserError

FOLDERS = {
    "arithmetic": "math_experiments",
    "sentiment": "bob_sentiment_experiments",
    "safety": "jailbreak_experiments",
}
KS = {"arithmetic": (4, 8, 16, 32), "sentiment": (8, 16, 32, 64, 128), "safety": (8, 16, 32, 64, 128)}
FILES = {"train": "train_{}_{k}shot", "valid": "valid_{}_{k}shot_seed1234"}
TEST_FILES = {"arithmetic": {"test_id": "test_{}_id"}, "sentiment": {}, "safety": {}}


def task_config(root: pathlib.Path, name: str, k: int = 2, **options) -> config_dict.ConfigDict:
    defaults = {"demos": True, "one_wording": False, "valid_seed": 1234}
    return config_dict.ConfigDict({"name": name, "root": str(root), "k": k, **defaults, **options})


def write_pair(root: pathlib.Path, name: str, rows: list[tuple[str, str, str, str]]) -> None:
    """Writes `full` and `no` files of rows (rule, own instruction, input, output)."""
    for form in ("full", "no"):
        content = [
            {"instruction": join_instruction(rule, own) if form == "full" else own, "input": text, "output": output}
            for rule, own, text, output in rows
        ]
        (root / name.format(form)).write_text(json.dumps(content), encoding="utf-8")


SENTIMENT_ROWS = [("Rule A.", "", "on trees", "Bad."), ("Rule B.", "", "on trade", "Good.")]
SENTIMENT_TEST = [
    ("Rule A.", "", "on rivers", ""),
    ("Rule A.", "", "on wind", ""),
    ("Rule B.", "", "on taxes", ""),
]


@pytest.fixture
def sentiment(tmp_path):
    write_pair(tmp_path, "train_{}_2shot.json", SENTIMENT_ROWS)
    write_pair(tmp_path, "test_{}.json", SENTIMENT_TEST)
    return tmp_path


def test_rule_and_own_instruction_are_taken_apart(tmp_path):
    rows = [("Refuse harm.", "Play a role.\n\nNow.", "Hello", "Hi."), ("Refuse harm.", "", "Bye", "See you.")]
    write_pair(tmp_path, "train_{}_2shot.json", rows)
    train = load_task(task_config(tmp_path, "safety"), seed=0).splits["train"]
    assert [(row["rule"], row["instruction"], row["input"], row["output"]) for row in train] == rows
    assert train[1]["where"] == f"{tmp_path / 'train_full_2shot.json'}, row 1"


def test_missing_test_and_valid_files_are_noted_by_name(tmp_path):
    write_pair(tmp_path, "train_{}_2shot.json", SENTIMENT_ROWS)
    task = load_task(task_config(tmp_path, "arithmetic"), seed=0)
    assert set(task.splits) == {"train"}
    for name in ("valid_full_2shot_seed1234.json", "test_full_id.json", "test_full_ood.json"):
        assert sum(name in note for note in task.notes) == 1


def test_a_validation_file_of_another_seed_is_asked_for_by_name(tmp_path):
    write_pair(tmp_path, "train_{}_2shot.json", SENTIMENT_ROWS)
    write_pair(tmp_path, "valid_{}_2shot_seed7.json", SENTIMENT_ROWS)
    with pytest.raises(UserError, match=r"task\.valid_seed = 1234: .*not found; there: 7"):
        load_task(task_config(tmp_path, "arithmetic"), seed=0)


def test_a_missing_counterpart_leaves_the_split_out(sentiment):
    (sentiment / "test_no.json").unlink()
    task = load_task(task_config(sentiment, "sentiment"), seed=0)
    assert set(task.splits) == {"train"}
    assert any("test_full.json" in note for note in task.notes)


def test_sentiment_test_is_split_by_its_wordings(sentiment):
    splits = load_task(task_config(sentiment, "sentiment"), seed=0).splits
    assert set(splits) == {"train", "test_on_topic", "test_elsewhere"}
    assert splits["test_on_topic"]["input"][:] == ["on rivers", "on wind"]
    assert splits["test_elsewhere"]["input"][:] == ["on taxes"]


def test_one_wording_for_all_rows(sentiment):
    splits = load_task(task_config(sentiment, "sentiment", one_wording=True), seed=0).splits
    assert {rule for part in splits.values() for rule in part["rule"]} == {"Rule A."}
    assert splits["test_elsewhere"]["input"][:] == ["on taxes"]


def test_demos_are_stripped_on_request(tmp_path):
    rows = [(f"Add.{DEMOS_LEAD}\n\n### Input:\n1 # 2\n\n### Response:\n4.", "", "2 # 3", "6.")] * 2
    write_pair(tmp_path, "train_{}_2shot.json", rows)
    with_demos, without = (
        load_task(task_config(tmp_path, "arithmetic", demos=demos), seed=0).splits["train"] for demos in (True, False)
    )
    assert set(with_demos["rule"]) == {rows[0][0]}
    assert set(without["rule"]) == {"Add."}


def test_valid_seed_chooses_the_file(tmp_path):
    write_pair(tmp_path, "train_{}_2shot.json", SENTIMENT_ROWS)
    write_pair(tmp_path, "valid_{}_2shot_seed7.json", [("Rule A.", "", "seven", "7.")])
    splits = load_task(task_config(tmp_path, "safety", valid_seed=7), seed=0).splits
    assert splits["valid"]["input"][:] == ["seven"]


def test_safety_with_128_is_warned_of(tmp_path):
    for k in (2, 128):
        write_pair(tmp_path, f"train_{{}}_{k}shot.json", SENTIMENT_ROWS)
    notes = {k: load_task(task_config(tmp_path, "safety", k), seed=0).notes for k in (2, 128)}
    assert any("k = 128" in note and "jailbreak" in note for note in notes[128])
    assert not any("jailbreak prompt" in note for note in notes[2])


def test_an_unknown_k_names_what_is_there(sentiment):
    write_pair(sentiment, "train_{}_16shot.json", SENTIMENT_ROWS)
    with pytest.raises(UserError, match=r"task\.k = 5: .*train_full_5shot\.json not found; there: 2, 16"):
        load_task(task_config(sentiment, "sentiment", 5), seed=0)


@pytest.mark.parametrize(("field", "row"), [("input", 0), ("output", 1)])
def test_rows_that_do_not_align_are_named(sentiment, field, row):
    path = sentiment / "train_no_2shot.json"
    content = json.loads(path.read_text())
    content[row][field] += " changed"
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=rf"train_full_2shot\.json, row {row}: does not align with train_no_2shot\.json"
    ):
        load_task(task_config(sentiment, "sentiment"), seed=0)


def test_a_rule_that_is_nowhere_does_not_align(sentiment):
    path = sentiment / "train_full_2shot.json"
    content = json.loads(path.read_text())
    content[1]["instruction"] = ""
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="row 1: does not align"):
        load_task(task_config(sentiment, "sentiment"), seed=0)


def test_lists_of_unequal_length_do_not_align(sentiment):
    path = sentiment / "train_no_2shot.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))
    with pytest.raises(UserError, match=r"train_full_2shot\.json has 2 rows and train_no_2shot\.json has 1"):
        load_task(task_config(sentiment, "sentiment"), seed=0)


@pytest.mark.parametrize("one_wording", [False, True])
def test_an_empty_list_is_an_error(sentiment, one_wording):
    write_pair(sentiment, "train_{}_2shot.json", [])
    with pytest.raises(UserError, match=r"train_full_2shot\.json: holds no rows"):
        load_task(task_config(sentiment, "sentiment", one_wording=one_wording), seed=0)


# The real files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "k"), [(name, k) for name, ks in KS.items() for k in ks])
def test_rule_and_own_instruction_make_up_the_published_text(published_data, name, k):
    root = published_data / FOLDERS[name]
    splits = load_task(task_config(root, name, k), seed=0).splits
    files = {split: file.format("{}", k=k) + ".json" for split, file in (FILES | TEST_FILES[name]).items()}
    for split, file in files.items():
        full, no = (json.loads((root / file.format(form)).read_text(encoding="utf-8")) for form in ("full", "no"))
        rows = list(splits[split])
        recomposed = [join_instruction(row["rule"], row["instruction"]) for row in rows]
        assert recomposed == [row["instruction"] for row in full]
        assert [{field: row[field] for field in no[0]} for row in rows] == no
    assert len(splits["train"]) == k


def test_published_arithmetic(published_data):
    root = published_data / "math_experiments"
    bare = load_task(task_config(root, "arithmetic", 8, demos=False), seed=0).splits
    assert {rule for part in bare.values() for rule in part["rule"]} == {PAPER_RULE.text()}
    assert len(bare["test_id"]) == 100


def test_published_sentiment_test_halves(published_data):
    splits = load_task(task_config(published_data / "bob_sentiment_experiments", "sentiment", 8), seed=0).splits
    on_topic, elsewhere = splits["test_on_topic"], splits["test_elsewhere"]
    assert len(on_topic) == len(elsewhere) == 100
    assert len(set(on_topic["rule"])) == len(set(elsewhere["rule"])) == 1
    assert on_topic["rule"][0] != elsewhere["rule"][0]
    assert sum("environment" in text.lower() for text in on_topic["input"]) > 10
    assert not any("environmental" in text.lower() for text in elsewhere["input"])


def test_published_safety_rows_keep_their_jailbreak_prompt(published_data):
    root = published_data / "jailbreak_experiments"
    small, large = (load_task(task_config(root, "safety", k), seed=0).splits["train"] for k in (8, 128))
    assert all(small["instruction"]) and len(set(small["rule"])) == 1
    assert not any(large["instruction"])
