"""Checks how a task of several rules is read, and what is refused."""

import pathlib

import pytest

from configs.base import get_config
from rdjax.data.tasks import divide, load_task
from rdjax.errors import UserError
from tests.commands import write_rows

ROWS = [{"input": "one", "output": "1"}, {"input": "two", "output": "2"}]


def task_of(root: pathlib.Path, **changes):
    config = get_config().task
    config.update({"name": "rule", "root": str(root), "k": 0, "inputs": "auto", **changes})
    return load_task(config, seed=0)


@pytest.fixture
def root(tmp_path):
    for name in ("polite", "brief"):
        folder = tmp_path / "rules" / name
        folder.mkdir(parents=True)
        (folder / "rule.md").write_text(f"Be {name}.\n")
        for split in ("train", "test", "test_hard"):
            write_rows(folder / f"{split}.jsonl", ROWS)
    return tmp_path


def test_rules_train_together_and_are_tested_apart(root):
    task = task_of(root)
    assert task.rules == {"brief": "Be brief.", "polite": "Be polite."}
    assert task.splits["train"]["rule"][:] == ["Be brief."] * 2 + ["Be polite."] * 2
    tests = {f"{name}/{split}" for name in task.rules for split in ("test", "test_hard")}
    assert set(task.splits) == {"train", *tests}
    assert set(task.splits["polite/test"]["rule"]) == {"Be polite."}
    assert not task.wordings, "no inputs are written"


def test_k_counts_the_rows_of_each_rule(root):
    train = task_of(root, k=1).splits["train"]
    assert list(zip(train["rule"], train["input"], strict=True)) == [("Be brief.", "one"), ("Be polite.", "one")]
    with pytest.raises(UserError, match=r"config\.task\.k = 3: .*brief.train\.jsonl has 2 rows"):
        task_of(root, k=3)


def test_what_no_rule_is_about_has_the_rules_in_turn(root):
    write_rows(root / "retain.jsonl", ROWS)
    write_rows(root / "rules" / "polite" / "retain.jsonl", ROWS[:1])
    retain = task_of(root).splits["retain"]
    assert retain["rule"][:] == ["Be polite.", "Be brief.", "Be polite."]


def test_near_misses_are_of_a_rule(root):
    write_rows(root / "rules" / "polite" / "near_misses.jsonl", ROWS)
    assert set(task_of(root).splits["polite/near_misses"]["rule"]) == {"Be polite."}
    write_rows(root / "near_misses.jsonl", ROWS)
    with pytest.raises(UserError, match=r"near_misses\.jsonl: belongs to no rule"):
        task_of(root)


def test_near_misses_are_halved_where_their_rule_names_none_to_train_on(root):
    for rule in ("polite", "brief"):
        write_rows(root / "rules" / rule / "near_misses.jsonl", ROWS)
    write_rows(root / "rules" / "brief" / "near_misses_train.jsonl", [{"input": "three"}])
    splits = divide(task_of(root), 0.0, train_on_retained=True, seed=0).splits
    assert [len(splits[f"{rule}/near_misses"]) for rule in ("polite", "brief")] == [1, 2]
    assert set(splits["near_misses_train"]["rule"]) == {"Be polite.", "Be brief."}
    assert len(splits["near_misses_train"]) == 2 and "brief/near_misses_train" not in splits
    assert not any(
        split.endswith("_train") for split in divide(task_of(root), 0.0, train_on_retained=False, seed=0).splits
    )


def test_wordings_of_a_rule_stay_with_it(root):
    (root / "rules" / "polite" / "rule.2.md").write_text("Say please.")
    assert task_of(root).splits["train"]["rule"][2:] == ["Be polite.", "Say please."]
    assert task_of(root, one_wording=True).splits["train"]["rule"][:] == ["Be brief."] * 2 + ["Be polite."] * 2


def test_some_of_the_rules_can_be_chosen(root):
    task = task_of(root, rules=("polite",))
    assert task.rules == {"polite": "Be polite."} and len(task.splits["train"]) == 2
    with pytest.raises(UserError, match=r"config\.task\.rules: 'kind' is not in .*rules; accepted: brief, polite"):
        task_of(root, rules=("kind",))
    with pytest.raises(UserError, match=r"config\.task\.rules = \('polite',\): .* has no folder rules/"):
        task_of(root / "rules" / "polite", rules=("polite",))


def test_hidden_files_are_no_rules(root):
    (root / "rules" / ".DS_Store").write_text("")
    assert set(task_of(root).rules) == {"brief", "polite"}


def write(root: pathlib.Path, name: str) -> None:
    """Writes a file of rows, or a text."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, ROWS) if path.suffix == ".jsonl" else path.write_text("Be kind.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rule.md", r"rule\.md: belongs to no rule"),
        ("rule.other.md", r"rule\.other\.md: belongs to no rule"),
        ("train.jsonl", r"train\.jsonl: belongs to no rule"),
        ("test.jsonl", r"test\.jsonl: belongs to no rule"),
        ("rules/notes.md", r"notes\.md: is no rule's folder"),
        ("rules/be kind/rule.md", r"be kind: is no rule's folder; its name may have letters, digits, _, - and \."),
        ("rules/kind/rule.md", r"kind.train\.jsonl: not found; with several rules each has inputs of its own"),
        ("rules/kind/train.jsonl", r"kind.rule\.md: not found"),
        ("rules/brief/valid.jsonl", r"polite.valid\.jsonl: not found, but .*brief.valid\.jsonl exists"),
    ],
)
def test_a_file_in_the_wrong_place_is_named(root, name, message):
    write(root, name)
    with pytest.raises(UserError, match=message):
        task_of(root)


def test_inputs_of_several_rules_are_not_written(root):
    with pytest.raises(UserError, match=r"config\.task\.inputs = written: .*rules has several rules; accepted: file"):
        task_of(root, inputs="written")


def test_no_rule_at_all(tmp_path):
    (tmp_path / "rules").mkdir()
    with pytest.raises(UserError, match="rules: is empty"):
        task_of(tmp_path)
