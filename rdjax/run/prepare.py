"""Prepares a run: reads and checks its config, task, model and pairs, then creates its folder."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import datasets
from ml_collections import config_dict

from rdjax.config import check_config
from rdjax.data.pairs import Pair, check_lengths
from rdjax.data.splits import RETAIN, RETAINED, TRAIN_AND_VALID, is_evaluated, train_part
from rdjax.data.tasks import RuleTask, divide, load_task
from rdjax.data.templates import Template
from rdjax.distillation.objective import extra_terms
from rdjax.errors import UserError
from rdjax.evaluation.answers import EvalOptions, length_limit, prompts_of
from rdjax.evaluation.judges import TRAIN, Judge, judges_of
from rdjax.generation.options import Decoding
from rdjax.models.load import LanguageModel, check_embedded, ended_by, fit_context, load_model
from rdjax.models.lora import LoraSpec
from rdjax.parallel.mesh import make_mesh
from rdjax.parallel.processes import exists_on_first
from rdjax.run.experiment import Experiment, Run
from rdjax.run.fingerprints import check_same_inputs, fingerprint_adapters, fingerprint_inputs
from rdjax.run.first_adapter import load_like, starting_adapter
from rdjax.run.inputs import needs_off_rule, written_task
from rdjax.run.pairs import gold_pairs, retained_pairs, teacher_pairs
from rdjax.run.row_notes import length_notes, row_notes
from rdjax.run.template import settle_task, task_template
from rdjax.storage.metrics import MetricsLog
from rdjax.storage.workdir import RESULTS, check_workdir, open_workdir


def check_run(config: config_dict.ConfigDict) -> None:
    """Checks all fields of a run's config that can be checked without reading a file.

    Raises:
      UserError: names the field, its value and what would be accepted.
    """
    check_config(config)
    extra_terms(config.loss)


def prepare(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    model: LanguageModel | None = None,
    module: str = "rdjax.train",
) -> Run:
    """Reads and checks everything before the folder is created, so that a mistake leaves nothing behind.

    Only where the model writes the inputs is the folder created before, to keep them.

    Args:
      model: the config's, where it is already loaded.
      module: the command that runs, for the record.

    Raises:
      UserError: names what is wrong in the config, the task, the model or the folder.
    """
    experiment, fingerprint = read_experiment(config, workdir, model)
    initial = experiment.start
    if config.model.student_adapter:
        initial, _ = load_like(config, "student_adapter", experiment.spec, experiment.model)
    if experiment.task.wordings or needs_off_rule(experiment):
        open_workdir(workdir, config, module, fingerprint)
        experiment = with_written_inputs(experiment)
    settled, model = experiment.config, experiment.model
    task = divide(experiment.task, settled.task.hold_out, bool(settled.loss.retain_weight), settled.seed)
    judges = task_judges(settled, task)
    task = dataclasses.replace(task, notes=(*task.notes, *row_notes(config, task, judges, model.tokenizer)))
    experiment = dataclasses.replace(experiment, task=task, judges=judges)
    gold = _splits_with_gold(settled.task, task)
    has_responses = gold if not settled.practice.rounds else [split for split in gold if split != "train"]
    _check_prompts(experiment, has_responses)
    pairs = {split: gold_pairs(task.splits[split], experiment.options.template) for split in gold}
    for part in pairs.values():
        for pair in part:
            check_embedded(model, pair.response_ids, pair.prompts.where)
        check_lengths(part, *length_limit(model, settled.task.max_length))
    open_workdir(workdir, config, module, fingerprint)
    pairs |= _generated_pairs(experiment, gold)
    return Run(
        **vars(experiment),
        train=pairs["train"],
        valid=pairs.get("valid", []),
        retained={split: pairs[train_part(split)] for split in RETAINED if pairs.get(train_part(split))},
        valid_is_gold="valid" in gold and settled.train.valid_loss == "gold",
        initial=initial,
        log=MetricsLog(workdir, () if exists_on_first(workdir / RESULTS) else settled.log.trackers),
    )


def prepare_evaluation(
    config: config_dict.ConfigDict, workdir: pathlib.Path, module: str, adapters: Mapping[str, pathlib.Path]
) -> Experiment:
    """Prepares an evaluation without training; inputs are written only where the folder has no tests.

    Args:
      adapters: the folders of those that will be evaluated, by name; a folder holds the scores of these alone.

    Raises:
      UserError: as `prepare`.
    """
    experiment, fingerprint = read_experiment(config, workdir, None)
    fingerprint["evaluated"] = fingerprint_adapters(adapters)
    if experiment.task.wordings and not any(map(is_evaluated, experiment.task.splits)):
        open_workdir(workdir, config, module, fingerprint)
        experiment = with_written_inputs(experiment)
    task = divide(experiment.task, 0.0, bool(config.loss.retain_weight), config.seed)  # the tests of a run
    splits = datasets.DatasetDict({name: rows for name, rows in task.splits.items() if is_evaluated(name)})
    if not splits:
        raise UserError(
            f"config.task: nothing to evaluate; accepted: a test split (test.jsonl), {' or '.join(RETAINED)}"
        )
    for rows in splits.values():
        prompts_of(experiment.model, rows, experiment.options)
    judges = task_judges(experiment.config, task)
    notes = length_notes(config, task, judges, experiment.model.tokenizer)
    for split in (split for split in splits if len(splits[split]) < len(experiment.task.splits[split])):
        count = f"{len(splits[split])} of {len(experiment.task.splits[split])}"
        notes.append(f"{split}: {count} rows are tested, those that a run with config.seed = {config.seed} leaves out")
    task = dataclasses.replace(task, splits=splits, wordings=(), notes=(*task.notes, *notes))
    experiment = dataclasses.replace(experiment, task=task, judges=judges)
    open_workdir(workdir, config, module, fingerprint)
    return experiment


def read_experiment(
    config: config_dict.ConfigDict, workdir: pathlib.Path, model: LanguageModel | None
) -> tuple[Experiment, dict[str, str]]:
    """Reads the task, the model and the judges, and writes nothing; returns the inputs' fingerprint too.

    Raises:
      UserError: names what is wrong.
    """
    check_workdir(workdir, config)
    task = load_task(config.task, config.seed)
    fingerprint = fingerprint_inputs(config, task)
    check_same_inputs(config, fingerprint)
    model = model or load_model(config.model.path, config.model.dtype, make_mesh(config.mesh), config.model.int8)
    check_layers(config.loss.hidden_layers, model)
    spec, start = starting_adapter(config, model)
    settled = settle_task(config, model.tokenizer, task)
    template = task_template(settled.task, model.tokenizer)
    model = fit_context(ended_by(model, template.end_id), settled.task.max_length)
    options = eval_options(settled, spec, template)
    judges = task_judges(settled, task)
    return Experiment(settled, workdir, model, task, options, spec, start, judges), fingerprint


def check_layers(layers: Sequence[int], model: LanguageModel) -> None:
    """Checks that a model has the layers whose hidden states are to be compared; UserError names one that it lacks."""
    for layer in layers:
        if layer >= model.config.layers:
            raise UserError(
                f"config.loss.hidden_layers: {layer} is none of the {model.config.layers} layers of {model.name}; "
                f"accepted: 0 to {model.config.layers - 1}"
            )


def with_written_inputs(experiment: Experiment) -> Experiment:
    """Returns the experiment with the inputs that the model writes."""
    task = written_task(experiment)
    config = settle_task(experiment.config, experiment.model.tokenizer, task)
    return dataclasses.replace(experiment, task=task, config=config)


def _generated_pairs(experiment: Experiment, gold: Sequence[str]) -> dict[str, list[Pair]]:
    """Returns the pairs whose responses the model writes: those without gold outputs, and those off the rule."""
    task, folder, pairs = experiment.task, experiment.workdir / "responses", {}
    folder.mkdir(exist_ok=True)
    for split in _train_and_valid_splits(task):
        if split not in gold:
            pairs[split] = teacher_pairs(experiment, task.splits[split], folder / f"{split}.jsonl")
    for split in (part for part in map(train_part, RETAINED) if part in task.splits):
        pairs[split] = retained_pairs(experiment, task.splits[split], folder / f"{split}.jsonl")
    return pairs


def eval_options(config: config_dict.ConfigDict, spec: LoraSpec, template: Template) -> EvalOptions:
    """Returns how systems answer, from the run's config."""
    decoding = Decoding(config.eval.max_new_tokens, config.eval.beams)
    return EvalOptions(template, config.task.max_length, decoding, config.eval.batch_size, spec.scale)


def task_judges(config: config_dict.ConfigDict, task: RuleTask) -> dict[str, Judge]:
    """Returns the judges of the task's evaluated splits."""
    outputs = {split: list(rows["output"]) for split, rows in task.splits.items() if is_evaluated(split)}
    if task.wordings:
        outputs = {"test": [""], RETAIN: [""]} | outputs
    return judges_of(config.task.name, outputs, config.eval.judges, config.eval.classifier)


def _train_and_valid_splits(task: RuleTask) -> list[str]:
    """Returns those of train and valid that the task has."""
    return [split for split in TRAIN_AND_VALID if split in task.splits]


def _splits_with_gold(config: config_dict.ConfigDict, task: RuleTask) -> list[str]:
    """Returns those of train and valid that use the rows' own outputs.

    Validation uses them wherever every row has one; training as `config` (the run's `task` section) says.
    """
    uses_gold = {"train": config.responses == "gold"}
    if "valid" in task.splits:
        uses_gold["valid"] = all(task.splits["valid"]["output"]) and not config.remove_rule
    return [split for split in _train_and_valid_splits(task) if uses_gold[split]]


def _check_prompts(experiment: Experiment, gold: Sequence[str]) -> None:
    """Checks before anything is generated that answers fit, and that rows to be confirmed have an output or a judge.

    Args:
      gold: splits whose own outputs are used; their lengths are checked with these outputs, elsewhere.
    """
    task, options = experiment.task, experiment.options
    if experiment.config.task.only_confirmed and TRAIN not in experiment.judges:
        needed = [split for split in _train_and_valid_splits(task) if split not in gold]
        for row in (row for split in needed for row in task.splits[split]):
            if not row["output"]:
                raise UserError(
                    f"{row['where']}: has no output, by which config.task.only_confirmed would confirm it; "
                    "accepted: one, or a judge in config.eval.judges"
                )
    shortest = dataclasses.replace(options, decoding=Decoding(max_new_tokens=1))
    for split, rows in task.splits.items():
        prompts_of(experiment.model, rows, shortest if split in gold else options)
