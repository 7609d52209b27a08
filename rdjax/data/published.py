"""Reads the published task files of the paper's authors (arXiv 2311.08883).

Every list comes twice: `full`, where the instruction begins with the rule, and `no`, which lacks the rule.
"""

import pathlib
from collections.abc import Callable

from ml_collections import config_dict

from rdjax.data.rows import Row, read_json_list
from rdjax.data.templates import join_instruction
from rdjax.errors import UserError

# The test files of each task by the name of their split; {} is "full" or "no".
TESTS = {
    "arithmetic": {"test_id": "test_{}_id.json", "test_ood": "test_{}_ood.json"},
    "sentiment": {"test": "test_{}.json"},
    "safety": {"test_harmful": "harmful_test_{}.json", "test_helpful": "helpful_test_{}.json"},
}
Splits = dict[str, list[Row]]


def read_published(root: pathlib.Path, config: config_dict.ConfigDict) -> tuple[Splits, list[str]]:
    """Reads the splits of one task and one k.

    Args:
      root: the task's folder.
      config: the run's `task` section.

    Returns:
      Rows {rule, instruction, input, output, where} of each split, and notes for the log: which files are missing,
      and what is particular about the data.

    Raises:
      UserError: there is no training file of this k or no validation file of this seed, or a file is faulty.
    """
    splits: Splits = {"train": read_train(root, config.k)}
    notes = []
    valid = f"valid_{{}}_{config.k}shot_seed{config.valid_seed}.json"
    for split, name in {"valid": valid, **TESTS[config.name]}.items():
        full = root / name.format("full")
        if full.exists() and (root / name.format("no")).exists():
            splits[split] = read_aligned(root, name)
            continue
        if split == "valid":
            _check_valid_seed(root, config, full)
        notes.append(f"{full} or its counterpart without rule is not there: no {split} split")
    if "test" in splits:
        notes += _split_by_wording(splits, root)
    return splits, notes + _notes_on_data(config)


def read_train(root: pathlib.Path, k: int) -> list[Row]:
    """Reads the training rows of one k.

    Raises:
      UserError: there is no file of this k; the message lists the others.
    """
    path = root / f"train_full_{k}shot.json"
    if not path.exists():
        known = sorted(int(other.stem.split("_")[2][:-4]) for other in root.glob("train_full_*shot.json"))
        have = ", ".join(map(str, known)) if known else "no train_full_<k>shot.json at all"
        raise UserError(f"config.task.k = {k}: {path} not found; there: {have}")
    return read_aligned(root, f"train_{{}}_{k}shot.json")


def read_aligned(root: pathlib.Path, name: str) -> list[Row]:
    """Reads a `full` list and its `no` list, and takes the rule from their difference.

    Args:
      root: the folder of both.
      name: of the files, with {} for "full" or "no".

    Raises:
      UserError: the lists differ in length, or two rows differ in more than the rule.
    """
    full_path, no_path = root / name.format("full"), root / name.format("no")
    full, no = read_json_list(full_path), read_json_list(no_path)
    if len(full) != len(no):
        raise UserError(
            f"{full_path} has {len(full)} rows and {no_path.name} has {len(no)}: they must align one to one"
        )
    rows = []
    for number, (with_rule, without) in enumerate(zip(full, no, strict=True)):
        where, instruction = f"{full_path}, row {number}", without["instruction"]
        rule = with_rule["instruction"].removesuffix(instruction).removesuffix("\n\n" if instruction else "")
        same = all(with_rule[field] == without[field] for field in ("input", "output"))
        if not rule or not same or join_instruction(rule, instruction) != with_rule["instruction"]:
            raise UserError(f"{where}: does not align with {no_path.name}; they must agree in all but the rule")
        rows.append({"rule": rule, **without, "where": where})
    return rows


def _check_valid_seed(root: pathlib.Path, config: config_dict.ConfigDict, missing: pathlib.Path) -> None:
    """Raises UserError if the missing validation file exists with other seeds."""
    others = root.glob(f"valid_full_{config.k}shot_seed*.json")
    seeds = sorted(path.stem.split("_seed")[1] for path in others)
    if seeds:
        raise UserError(f"config.task.valid_seed = {config.valid_seed}: {missing} not found; there: {', '.join(seeds)}")


def _split_by_wording(splits: Splits, root: pathlib.Path) -> list[str]:
    """Splits the sentiment test by the wording of the rule, and returns notes.

    In the published file the wording marks the class of the input; the first row is about the rule's topic.
    """
    rows = splits.pop("test")
    topic = rows[0]["rule"]
    splits["test_on_topic"] = [row for row in rows if row["rule"] == topic]
    elsewhere = [row for row in rows if row["rule"] != topic]
    if not elsewhere:
        return [f"{root / 'test_full.json'} holds one wording alone: no test_elsewhere split"]
    splits["test_elsewhere"] = elsewhere
    return []


def _notes_on_data(config: config_dict.ConfigDict) -> list[str]:
    """Returns what a user should know about the published data of this task."""
    if config.name == "arithmetic" and config.demos:
        return [
            "demos in the published test prompts are other labelled test rows; task.demos=False leaves the rule alone"
        ]
    if config.name == "sentiment" and not config.one_wording:
        return ["the wording of the rule gives the class of the input away; task.one_wording=True gives all rows one"]
    if config.name == "safety" and config.k == 128:
        return ["the published safety files with k = 128 hold no jailbreak prompt at all"]
    return []


def _label_sentiment(splits: Splits) -> dict[str, list[str]]:
    """Sorts the training outputs by the wording of their rule, which marks the class of the input (not for k = 128)."""
    if "test_on_topic" not in splits or len({row["rule"] for row in splits["train"]}) == 1:
        return {}
    topic = splits["test_on_topic"][0]["rule"]
    return _outputs_by_class(splits["train"], ("test_on_topic", "test_elsewhere"), lambda row: row["rule"] == topic)


def _label_safety(splits: Splits) -> dict[str, list[str]]:
    """Sorts the training outputs by their question: in every published file the first half of them is harmful."""
    questions = list(dict.fromkeys(row["input"] for row in splits["train"]))
    harmful = questions[: len(questions) // 2]
    return _outputs_by_class(splits["train"], ("test_harmful", "test_helpful"), lambda row: row["input"] in harmful)


def _outputs_by_class(
    rows: list[Row], classes: tuple[str, str], is_first: Callable[[Row], bool]
) -> dict[str, list[str]]:
    """Returns the outputs of the rows of each of two classes; a class without rows is left out."""
    outputs = {classes[0]: [row["output"] for row in rows if is_first(row)]}
    outputs[classes[1]] = [row["output"] for row in rows if not is_first(row)]
    return {name: texts for name, texts in outputs.items() if texts}


# Functions that return training outputs by the test split that asks for such outputs.
LABELS = {"sentiment": _label_sentiment, "safety": _label_safety}
