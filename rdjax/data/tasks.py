"""Rule tasks: the published files, a user's own folder, or generated ones, as one shape.

A task is a `datasets.DatasetDict` whose rows are {rule, instruction, input, output, where}: the rule text
that the teacher reads, the row's own instruction, its input, the gold output ("" where there is none)
and the file and row that it came from, for messages.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from ml_collections import config_dict

from rdjax.data.generated import GENERATORS
from rdjax.data.templates import DEMOS_LEAD, join_instruction
from rdjax.errors import UserError

FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("rule", "instruction", "input", "output", "where")}
)


OWN_FOLDER = "a task folder holds rule.md and train.jsonl"


@dataclasses.dataclass(frozen=True)
class RuleTask:
    """A task's splits (train, valid, test*, retain) and what a user should know about them.

    Attributes:
      notes: for the log.
      labelled: outputs that are known to be what a test split asks for, by which its judge can be measured.
    """

    splits: datasets.DatasetDict
    notes: tuple[str, ...] = ()
    labelled: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


def load_task(config: config_dict.ConfigDict, seed: int) -> RuleTask:
    """Reads or generates the task that `config` (the run's `task` section) names.

    Raises:
      UserError: a file, k or field is missing, JSON is invalid, or aligned lists do not align.
    """
    if config.name in GENERATORS and not config.root:
        generated = GENERATORS[config.name](config, seed)
        return RuleTask(_as_datasets(generated.splits), labelled=generated.labelled)
    root = pathlib.Path(config.root)
    if not root.is_dir():
        raise UserError(f"config.task.root: {root} is not a folder")
    rows, notes = read_own_folder(root, config) if config.name == "rule" else read_published(root, config)
    labelled = LABELS[config.name](rows) if config.name in LABELS else {}
    if not config.demos:
        rows = {
            split: [{**row, "rule": row["rule"].split(DEMOS_LEAD)[0]} for row in part] for split, part in rows.items()
        }
    if config.one_wording:
        rule = rows["train"][0]["rule"]
        rows = {split: [{**row, "rule": rule} for row in part] for split, part in rows.items()}
    return RuleTask(_as_datasets(rows), tuple(notes), labelled)


def _as_datasets(rows: dict[str, list[dict[str, str]]]) -> datasets.DatasetDict:
    return datasets.DatasetDict({split: datasets.Dataset.from_list(part, FEATURES) for split, part in rows.items()})


# The published files -------------------------------------------------------------------------------------------------

# Test files and the splits they become; {} is "full" or "no".
PUBLISHED_TESTS = {
    "arithmetic": {"test_id": "test_{}_id.json", "test_ood": "test_{}_ood.json"},
    "sentiment": {"test": "test_{}.json"},
    "safety": {"test_harmful": "harmful_test_{}.json", "test_helpful": "helpful_test_{}.json"},
}


def read_published(root: pathlib.Path, config: config_dict.ConfigDict) -> tuple[dict[str, list[dict]], list[str]]:
    """The published files of one task and k; a missing test file is noted and its split left out."""
    train = root / f"train_full_{config.k}shot.json"
    if not train.exists():
        known = sorted(int(path.stem.split("_")[2][:-4]) for path in root.glob("train_full_*shot.json"))
        have = ", ".join(map(str, known)) if known else "no train_full_<k>shot.json at all"
        raise UserError(f"config.task.k = {config.k}: {train} not found; there: {have}")
    rows = {"train": _aligned(root, f"train_{{}}_{config.k}shot.json")}
    valid = f"valid_{{}}_{config.k}shot_seed{config.valid_seed}.json"
    notes = []
    for split, name in {"valid": valid, **PUBLISHED_TESTS[config.name]}.items():
        if (root / name.format("full")).exists() and (root / name.format("no")).exists():
            rows[split] = _aligned(root, name)
        elif split == "valid" and list(root.glob(f"valid_full_{config.k}shot_seed*.json")):
            seeds = sorted(path.stem.split("_seed")[1] for path in root.glob(f"valid_full_{config.k}shot_seed*.json"))
            raise UserError(
                f"config.task.valid_seed = {config.valid_seed}: {root / name.format('full')} not found; "
                f"there: {', '.join(seeds)}"
            )
        else:
            notes.append(f"{root / name.format('full')} or its counterpart without rule is not there: no {split} split")
    if "test" in rows and config.name == "sentiment":
        # In the published test the wording of the rule marks the class of the input: the first is the topic's.
        topic = rows["test"][0]["rule"]
        rows["test_on_topic"] = [row for row in rows["test"] if row["rule"] == topic]
        rows["test_elsewhere"] = [row for row in rows.pop("test") if row["rule"] != topic]
        if not rows["test_elsewhere"]:
            del rows["test_elsewhere"]
            notes.append(f"{root / 'test_full.json'} holds one wording alone: no test_elsewhere split")
    if config.name == "arithmetic" and config.demos:
        notes.append(
            "demos in the published test prompts are other labelled test rows; task.demos=False leaves the rule alone"
        )
    if config.name == "sentiment" and not config.one_wording:
        notes.append(
            "the wording of the rule gives the class of the input away; task.one_wording=True gives all rows one"
        )
    if config.name == "safety" and config.k == 128:
        notes.append("the published safety files with k = 128 hold no jailbreak prompt at all")
    return rows, notes


def _label_sentiment(rows: dict[str, list[dict]]) -> dict[str, list[str]]:
    """Training outputs by the wording of their rule, which marks the class of the input (not where k = 128)."""
    if "test_on_topic" not in rows or len({row["rule"] for row in rows["train"]}) == 1:
        return {}
    topic = rows["test_on_topic"][0]["rule"]
    outputs = {"test_on_topic": [row["output"] for row in rows["train"] if row["rule"] == topic]}
    outputs["test_elsewhere"] = [row["output"] for row in rows["train"] if row["rule"] != topic]
    return {split: texts for split, texts in outputs.items() if texts}


def _label_safety(rows: dict[str, list[dict]]) -> dict[str, list[str]]:
    """Training outputs by their question: in every published file the first half of them are the harmful ones."""
    questions = list(dict.fromkeys(row["input"] for row in rows["train"]))
    harmful = questions[: len(questions) // 2]
    outputs = {"test_harmful": [row["output"] for row in rows["train"] if row["input"] in harmful]}
    outputs["test_helpful"] = [row["output"] for row in rows["train"] if row["input"] not in harmful]
    return {split: texts for split, texts in outputs.items() if texts}


# What each published task's training outputs are known to be.
LABELS = {"sentiment": _label_sentiment, "safety": _label_safety}


def _aligned(root: pathlib.Path, name: str) -> list[dict[str, str]]:
    """Rows of a `full` list and the `no` list beside it, which must agree in everything but the rule."""
    full_path, no_path = root / name.format("full"), root / name.format("no")
    full, no = read_json_list(full_path), read_json_list(no_path)
    if len(full) != len(no):
        raise UserError(
            f"{full_path} has {len(full)} rows and {no_path.name} has {len(no)}: they must align one to one"
        )
    rows = []
    for number, (with_rule, without) in enumerate(zip(full, no, strict=True)):
        where = f"{full_path}, row {number}"
        own = without["instruction"]
        rule = with_rule["instruction"].removesuffix(own).removesuffix("\n\n" if own else "")
        same = all(with_rule[field] == without[field] for field in ("input", "output"))
        if not rule or not same or join_instruction(rule, own) != with_rule["instruction"]:
            raise UserError(f"{where}: does not align with {no_path.name}; they must agree in all but the rule")
        rows.append({"rule": rule, **without, "where": where})
    return rows


def read_json_list(path: pathlib.Path) -> list[dict[str, str]]:
    """A JSON list of {instruction, input, output}; invalid JSON and missing fields are named by line and row."""
    try:
        data = json.loads(_read_text(path, f"{path}: not found"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: invalid JSON ({error.msg})") from None
    if not isinstance(data, list):
        raise UserError(f"{path}: must hold a JSON list of rows")
    if not data:
        raise UserError(f"{path}: holds no rows")
    return [
        _check_row(row, ("instruction", "input", "output"), f"{path}, row {number}") for number, row in enumerate(data)
    ]


def _read_text(path: pathlib.Path, missing: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(missing) from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _check_row(row: Any, required: tuple[str, ...], where: str) -> dict[str, str]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be an object with the fields {', '.join(required)}")
    for field in required:
        if field not in row:
            raise UserError(f"{where}: the field {field} is missing")
    checked = {name: "" if row.get(name) is None else row[name] for name in ("instruction", "input", "output")}
    for field, value in checked.items():
        if not isinstance(value, str):
            raise UserError(f"{where}: the field {field} must be a string")
    return checked


# A user's own folder -------------------------------------------------------------------------------------------------


def read_own_folder(root: pathlib.Path, config: config_dict.ConfigDict) -> tuple[dict[str, list[dict]], list[str]]:
    """rule.md (or several wordings rule.*.md, dealt out in turn), train.jsonl, and what else is there."""
    wordings = [path for path in (root / "rule.md", *sorted(root.glob("rule.*.md"))) if path.exists()]
    wordings = wordings or [root / "rule.md"]
    rules = []
    for path in wordings:
        rules.append(_read_text(path, f"{path}: not found; {OWN_FOLDER}").strip())
        if not rules[-1]:
            raise UserError(f"{path}: is empty; it must hold the rule in words")
    paths = [root / "train.jsonl", root / "valid.jsonl", root / "retain.jsonl", *sorted(root.glob("test*.jsonl"))]
    rows = {}
    for path in paths:
        if path.exists() or path.stem == "train":
            read = read_jsonl(path)
            rows[path.stem] = [{"rule": rules[number % len(rules)], **row} for number, row in enumerate(read)]
    if config.k > len(rows["train"]):
        raise UserError(f"config.task.k = {config.k}: {root / 'train.jsonl'} has {len(rows['train'])} rows")
    rows["train"] = rows["train"][: config.k or None]
    return rows, []


def read_jsonl(path: pathlib.Path) -> list[dict[str, str]]:
    """Rows {input, output?, instruction?}, one JSON object a line; blank lines are skipped."""
    # Not splitlines: that ends a line at U+2028 and others too, which JSON allows inside strings.
    lines = _read_text(path, f"{path}: not found; {OWN_FOLDER}").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: invalid JSON ({error.msg})") from None
        rows.append({**_check_row(row, ("input",), where), "where": where})
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return rows
