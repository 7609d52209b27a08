"""Distils rules from Python, for notebooks: `rdjax.distill(model=..., rule=...)`."""

import html
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from rdjax.data.rows import check_sample, input_row
from rdjax.data.splits import NEAR_MISSES, RETAIN
from rdjax.defaults import rule_config
from rdjax.errors import UserError
from rdjax.evaluation.answers import System, answer, prompts_of
from rdjax.models.peft_files import load_adapter
from rdjax.parallel.mesh import put, replicated
from rdjax.report.page import PAGE, write_page
from rdjax.run.distil import result_lines, run_experiment
from rdjax.run.experiment import Run
from rdjax.run.prepare import check_run
from rdjax.storage.files import check_whole, making_folder, user_path
from rdjax.storage.lock import unlock_folder
from rdjax.storage.records import Results, read_record
from rdjax.storage.workdir import FROM_PYTHON, RECORD, RESULTS

Rows = Sequence[str | Mapping[str, str]]  # inputs, or {"input": ..., "output": ...}
# Fields that arguments give, which settings must not.
GIVEN = {"model.path": "model", "task.root": "rule", "task.name": "rule"}


class Distilled:
    """Holds a finished run; in a notebook it shows the report's page.

    Attributes:
      workdir: its folder, as `rdjax.train` leaves it.
      adapter: the folder of the adapter, in PEFT's format.
      scores: the content of eval.json.
    """

    def __init__(self, run: Run):
        self.workdir = run.workdir
        self.adapter = run.workdir / "adapter"
        self.scores: dict[str, Any] = read_record(run.workdir / RESULTS, Results)
        self._run = run
        adapter, _ = load_adapter(self.adapter, run.model.config, run.model.base)
        self._student = put(adapter, replicated(run.model.mesh))

    def generate(self, inputs: str | Sequence[str], system: str = "student") -> Any:
        """Answers one input, or several.

        Args:
          inputs: a text, or a list of them.
          system: "student", "base" or "base_with_rule".

        Returns:
          The answer, or a list of them.

        Raises:
          UserError: the system is unknown, or an input is no text or too long.
        """
        run, several = self._run, isinstance(inputs, list | tuple)
        texts = list(inputs) if several else [inputs]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"inputs = {str(inputs)[:60]!r}; accepted: a text, or a list of texts")
        systems = {
            "student": System(self._student, with_rule=False),
            "base": run.base,
            "base_with_rule": run.base_with_rule,
        }
        if system not in systems:
            raise UserError(f"system = {system!r} is unknown; accepted: {', '.join(systems)}")
        if system == "base_with_rule" and run.task.rules:
            raise UserError(
                "system = 'base_with_rule' reads one rule, and this run has several; accepted: student, base"
            )
        rule = self.scores["rule"] if systems[system].with_rule else ""
        rows = [input_row(text, "an input", rule) for text in texts]
        answers = answer(run.model, systems[system], prompts_of(run.model, rows, run.options), run.options)
        answered = [answer.text for answer in answers]
        return answered if several else answered[0]

    def __str__(self) -> str:
        return "\n".join(result_lines(self._run)) or "nothing was evaluated: give inputs to test"

    def _repr_html_(self) -> str:
        page = html.escape((self.workdir / PAGE).read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 1px solid #ddd"></iframe>'


def distill(
    model: str | pathlib.Path,
    rule: str | pathlib.Path,
    inputs: Rows = (),
    *,
    valid: Rows = (),
    test: Rows = (),
    retain: Rows = (),
    near_misses: Rows = (),
    judge: str = "",
    workdir: str | pathlib.Path | None = None,
    **settings: Any,
) -> Distilled:
    """Distils a rule into an adapter; the same as `rdjax.train` with configs/rule.py.

    Args:
      model: a folder, a hub id, or an embedded model.
      rule: its text, or a task folder (docs/reference.md), which then has the inputs too.
      inputs: training inputs, with outputs or without; none: the model writes some.
      valid, test: likewise, for validation and test. Without `valid` a part of `inputs` validates, where there are
        enough; without `test` nothing is evaluated, unless the model writes the inputs.
      retain, near_misses: inputs that the rule is not about, and inputs that resemble its own but do not meet its
        condition: what the model says to them is to stay as it is.
      judge: decides which answers follow the rule, as in `eval.judges`.
      workdir: a new or an unfinished run's folder; default: a new temporary one.
      settings: fields of the config, with "__" for the dot: train__updates=100.

    Returns:
      The finished run.

    Raises:
      UserError: names what is wrong, and what would be accepted.
    """
    splits = {"train": inputs, "valid": valid, "test": test, RETAIN: retain, NEAR_MISSES: near_misses}
    config = rule_config()
    for name, value in settings.items():
        field = name.replace("__", ".")
        if field in GIVEN:
            raise UserError(f"{name} is given by {GIVEN[field]}; leave it out")
        _set_field(config, field, value)
    if not isinstance(judge, str):
        raise UserError(f"judge = {judge!r}; accepted: a name, such as json or python:<file>.py:<function>")
    config.model.path, config.eval.judges = str(model), (judge,) if judge else config.eval.judges
    if judge and "eval__judges" in settings:
        raise UserError("judge and eval__judges are both given; accepted: one of the two")
    check_run(config)
    lines = {split: _row_lines(rows, "inputs" if split == "train" else split) for split, rows in splits.items()}
    if isinstance(rule, str):
        rule = rule.replace("\r\n", "\n").strip()
    workdir = user_path(workdir or tempfile.mkdtemp(prefix="rdjax-")).absolute()
    folder, is_new = _task_folder(rule, lines, workdir)
    config.task.root = str(folder)
    try:
        run = run_experiment(config, workdir, FROM_PYTHON)
        if not (workdir / PAGE).exists():
            write_page(workdir)
    finally:
        unlock_folder(workdir)
        if is_new and not (workdir / RECORD).exists():  # a mistake in them: the next call brings others
            shutil.rmtree(folder, ignore_errors=True)
    return Distilled(run)


def _set_field(config: Any, path: str, value: Any) -> None:
    """Sets a field of the config by its dotted path."""
    *sections, name = path.split(".")
    try:
        for section in sections:
            config = config[section]
        config[name] = value
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} = {value!r}: {error}; rdjax/defaults.py lists every field") from None


def _row_lines(rows: Rows, name: str) -> list[str]:
    """Returns rows as JSON, one a line.

    Raises:
      UserError: they are no list, or one is faulty; names the argument and the row.
    """
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a data frame, which iterates over its columns' names
        rows = rows.to_dict("records")
    if rows is None or isinstance(rows, str | Mapping):
        raise UserError(f"{name} = {str(rows)[:60]!r}; accepted: a list of inputs, or of rows with input and output")
    lines = []
    for number, row in enumerate(rows):
        if not isinstance(row, str | Mapping):
            raise UserError(
                f"{name}, row {number}: {str(row)[:60]!r}; accepted: a text, or a row with input and output"
            )
        fields = {"input": row} if isinstance(row, str) else dict(row)
        check_sample(fields, f"{name}, row {number}")
        lines.append(json.dumps(fields, ensure_ascii=False))
        check_whole(lines[-1], f"{name}, row {number}")
    return lines


def _task_folder(
    rule: str | pathlib.Path, splits: Mapping[str, Sequence[str]], workdir: pathlib.Path
) -> tuple[pathlib.Path, bool]:
    """Returns the folder of the task, the user's or one beside the workdir, and whether it was written now."""
    if not isinstance(rule, str | pathlib.Path) or not str(rule):
        raise UserError(f"rule = {rule!r}; accepted: the text of a rule, or a task folder")
    if isinstance(rule, pathlib.Path) or _is_path(rule):
        path = user_path(rule)
        if not path.is_dir():
            raise UserError(f"rule = {str(rule)!r} is no folder; accepted: the text of a rule, or a task folder")
        if any(splits.values()):
            raise UserError(f"rule = {str(rule)!r} is a folder: its files have the inputs; give a text, or no inputs")
        return path, False
    check_whole(rule, "rule")
    folder = workdir.with_name(f"{workdir.name}-rule")
    files = {"rule.md": rule + "\n"}
    for split, lines in splits.items():
        if lines:
            files[f"{split}.jsonl"] = "\n".join(lines) + "\n"
    if folder.exists():
        found = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.is_file()}
        if found != files:
            raise UserError(f"workdir = {str(workdir)!r}: {folder} holds another rule or rows; take another workdir")
        return folder, False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with making_folder(folder) as part:
        part.mkdir()
        for name, text in files.items():
            (part / name).write_text(text, encoding="utf-8")
    return folder, True


def _is_path(rule: str) -> bool:
    """Tells whether a text is a path: of something that exists, or one word such as my_rule, rule.md or rules/mine."""
    if "\n" in rule or len(rule) >= 255:
        return False
    try:
        return user_path(rule).exists() or bool(re.fullmatch(r"[\w~./\\-]*[_./\\][\w~/\\-]+/?", rule, re.ASCII))
    except (UserError, ValueError):  # a rule that begins with "~", or has a null character
        return False
