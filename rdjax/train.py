"""Distils a rule: `python -m rdjax.train --config=configs/quickstart.py --workdir=runs/quickstart`.

Trains, exports and evaluates, in that order. Running the same command again goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict

from rdjax import cli, experiment_flags
from rdjax.config import METHODS, RETAIN, check_config, hidden_weight, plain
from rdjax.data.batches import Slots
from rdjax.data.pairs import Pair, check_lengths, make_pair, make_prompts
from rdjax.data.tasks import RuleTask, load_task
from rdjax.distill.stage import Member, Stage, run_stage
from rdjax.distill.step import Objective, StepOptions
from rdjax.errors import UserError
from rdjax.evaluation import (
    GAP_NEAR_ZERO,
    EvalOptions,
    JudgeError,
    System,
    answer,
    evaluate,
    gap_to_close,
    judge_all,
    length_limit,
    prompts_of,
    table,
)
from rdjax.files import read_json, read_lines, write_json, write_lines
from rdjax.generation import Decoding
from rdjax.judges import BUILT_IN, Judge, judges_of
from rdjax.mesh import make_mesh, put, replicated
from rdjax.metrics import MetricsLog, progress
from rdjax.models.load import LanguageModel, load_model, resolve_folder
from rdjax.models.lora import Adapter, LoraSpec, init_adapter, load_adapter, save_adapter
from rdjax.processes import check_same, end_if_told, end_on_sigterm, there
from rdjax.workdir import RECORD, check_workdir, open_workdir

TUNE_WITH_RULE = Objective("tune_with_rule")
TUNE_WITHOUT_RULE = Objective("tune_without_rule")
# Instruction tuning is the ordinary one whatever the variant of distillation, and so is validation on gold.
GOLD_SLOTS = Slots("ours", "response", "token")
ENHANCED = "enhanced_teacher"
FINISHED = "eval.json"  # where it stands, nothing is left to train or to answer


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    config: config_dict.ConfigDict
    workdir: pathlib.Path
    model: LanguageModel
    task: RuleTask
    spec: LoraSpec
    start: Adapter
    train: Sequence[Pair]
    valid: Sequence[Pair]
    valid_is_gold: bool
    judges: dict[str, Judge]
    log: MetricsLog


def starting_adapter(config: config_dict.ConfigDict, model: LanguageModel) -> tuple[LoraSpec, Adapter]:
    """The adapter's form, and what teacher and student start from: an existing one, or one that changes nothing."""
    lora = config.lora
    spec = LoraSpec(lora.rank, lora.alpha, lora.dropout, tuple(lora.targets))
    if not config.model.adapter:
        return spec, put(init_adapter(model.config, spec, config.seed), replicated(model.mesh))
    adapter, theirs = load_adapter(resolve_folder(config.model.adapter, "adapter"), model.config)
    for name in ("rank", "alpha"):
        if getattr(spec, name) != getattr(theirs, name):
            raise UserError(
                f"config.lora.{name} = {getattr(spec, name)} but the adapter {config.model.adapter} that the run "
                f"starts from has {getattr(theirs, name)}; accepted: the adapter's"
            )
    if set(spec.targets) != set(theirs.targets):
        raise UserError(
            f"config.lora.targets = {spec.targets} but the adapter {config.model.adapter} has {theirs.targets}"
        )
    spec = dataclasses.replace(theirs, dropout=lora.dropout)
    return spec, put(adapter, replicated(model.mesh))


def eval_options(config: config_dict.ConfigDict, spec: LoraSpec) -> EvalOptions:
    decoding = Decoding(config.eval.max_new_tokens, config.eval.beams)
    return EvalOptions(config.task.template, config.task.max_length, decoding, config.eval.batch_size, spec.scale)


def gold_pairs(model: LanguageModel, rows, options: EvalOptions) -> list[Pair]:
    """Rows with their own outputs."""
    prompts = [make_prompts(options.template, model.tokenizer, row) for row in rows]
    outputs = [row["output"] for row in rows]
    return [make_pair(options.template, model.tokenizer, *both) for both in zip(prompts, outputs, strict=True)]


def teacher_pairs(
    model: LanguageModel,
    rows,
    start: Adapter,
    options: EvalOptions,
    config: config_dict.ConfigDict,
    path: pathlib.Path,
) -> list[Pair]:
    """Rows with the rule-conditioned teacher's own responses, which are kept in `path`.

    A response that reached no end of sequence teaches no end. With `task.only_confirmed`, rows whose gold output the
    teacher did not find are left out.
    """
    prompts = prompts_of(model, rows, options)
    if not there(path):
        system = System(start, with_rule=True)
        task = config.task
        drawn = dataclasses.replace(
            options.decoding, temperature=task.temperature, top_k=task.top_k, top_p=task.top_p, beams=1
        )
        decoding = drawn if task.temperature else options.decoding
        made = answer(model, system, prompts, dataclasses.replace(options, decoding=decoding), seed=config.seed)
        for prompt, ids in zip(prompts, made.ids, strict=True):
            if not ids:
                raise UserError(f"{prompt.where}: the teacher's own response is empty; leave this row out")
        columns = zip(rows, made.ids, made.ended, made.texts, strict=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            {"input": row["input"], "gold": row["output"], "response": text, "ids": ids, "ended": ended}
            for row, ids, ended, text in columns
        ]
        write_lines(path, lines)
    saved = read_lines(path)
    pairs = [Pair(prompt, tuple(line["ids"]), line["ended"]) for prompt, line in zip(prompts, saved, strict=True)]
    if not config.task.only_confirmed:
        return pairs
    kept = [
        pair for pair, line in zip(pairs, saved, strict=True) if BUILT_IN["exact_match"](line["response"], line["gold"])
    ]
    print(f"{path.stem}: the teacher's own response is the gold output in {len(kept)} of {len(pairs)} rows, which stay")
    if not kept:
        raise UserError(
            f"{path}: the teacher answers none of the rows as their outputs do; nothing is left to train on"
        )
    return kept


def show_sample(pair: Pair, model: LanguageModel) -> None:
    """Prints both renderings of a sample, the response marked."""
    response = model.tokenizer.decode(pair.response_ids)
    end = model.tokenizer.eos_token if pair.ended else ""
    for name, prompt in (("teacher, with the rule", pair.prompts.teacher_text), ("student", pair.prompts.student_text)):
        print(f"--- {name} ---\n{prompt}>>>{response}{end}<<<")
    shared, tokens = pair.prompts.shared + len(pair.response_ids), len(pair.response_ids)
    print(f"--- the response (>>> <<<) is the same {tokens} tokens in both; the shared tail has {shared} ---")


def report_start(run: Run) -> None:
    """Prints what a user should see before the run takes its time."""
    config, model = run.config, run.model
    for note in run.task.notes:
        print(f"note: {note}")
    show_sample(run.train[0], model)
    limit, limit_name = length_limit(model, config.task.max_length)
    longest = check_lengths([*run.train, *run.valid], limit, limit_name)
    print(f"longest prompt with response: {longest} tokens of {limit_name} = {limit}")
    weight = hidden_weight(config.loss, model.config.width)
    given = "hidden_beta" if config.loss.hidden_beta is not None else "hidden_weight"
    print(f"hidden loss: {weight:g} * mean_l ||u_t - u_s||^2 (from loss.{given}; beta {weight * model.config.width:g})")
    if config.eval.gap_rows:
        report_gap(run)


def report_gap(run: Run) -> None:
    """Measures and prints how far the rule in context moves the base, on what is held out where something is."""
    prompts = [pair.prompts for pair in (run.valid or run.train)[: run.config.eval.gap_rows]]
    gap = gap_to_close(run.model, run.start, prompts, eval_options(run.config, run.spec))
    run.log.truncate("gap", -1)
    run.log.write("gap", 0, {"kl": gap})
    print(f"gap to close: KL(base with rule || base) = {gap:.4f} nats a token over {len(prompts)} prompts")
    if gap < GAP_NEAR_ZERO:
        print(
            "warning: the rule in context changes next to nothing in what this model says: there is nothing to distil"
        )


def make_stage(
    config: config_dict.ConfigDict, spec: LoraSpec, width: int, name: str, method: str, valid_is_gold: bool
) -> Stage:
    """The stage that trains one adapter by one method, of a model of this width."""
    loss = config.loss
    published = loss.variant == "published"
    slots = Slots(loss.variant, loss.hidden_positions, "sample" if published else loss.reduction)
    options = StepOptions(spec.scale, spec.dropout, config.model.remat)
    tuning = {"inst_tune_without_rule": TUNE_WITHOUT_RULE, "inst_tune_with_rule": TUNE_WITH_RULE}
    if method in tuning:
        return Stage(name, tuning[method], tuning[method], options, GOLD_SLOTS, GOLD_SLOTS)
    distill = Objective("distill", loss.logit, loss.temperature, hidden_weight(loss, width))
    valid = (TUNE_WITHOUT_RULE, GOLD_SLOTS) if valid_is_gold else (distill, slots)
    return Stage(name, distill, valid[0], options, slots, valid[1])


def train_adapters(
    runs: Sequence[Run], name: str, method: str, teachers: Sequence[Adapter], folder: pathlib.Path
) -> list[Adapter]:
    """Trains one adapter of every run, side by side; checkpoints go to `<folder>/<name>`."""
    first = runs[0]
    members = [
        Member(run.config.seed, run.start, teacher, run.train, run.valid, run.log)
        for run, teacher in zip(runs, teachers, strict=True)
    ]
    stage = make_stage(first.config, first.spec, first.model.config.width, name, method, first.valid_is_gold)
    return run_stage(stage, first.model, members, first.config, folder / name)


def export_adapters(runs: Sequence[Run], name: str, adapters: Sequence[Adapter]) -> None:
    """Writes one adapter of every run to `adapter/` (the student) or `adapters/<name>/`."""
    for run, adapter in zip(runs, adapters, strict=True):
        place = run.workdir / ("adapter" if name == "student" else f"adapters/{name}")
        save_adapter(place, adapter, run.spec, run.model.name)


def train_all(runs: Sequence[Run], folder: pathlib.Path) -> list[dict[str, Adapter]]:
    """Every adapter that the method and the evaluated systems need, by name, for each run.

    Args:
      runs: they differ in their seed alone.
      folder: of the checkpoints.
    """
    config = runs[0].config
    starts = [run.start for run in runs]
    wanted = {"student": config.method}
    wanted |= {name: name for name in config.eval.systems if name in METHODS and name != config.method}
    needs_enhanced = "rule_distill_enhanced" in wanted.values() or "enhanced_with_rule" in config.eval.systems
    adapters: dict[str, list[Adapter]] = {}
    if needs_enhanced:
        adapters[ENHANCED] = train_adapters(runs, ENHANCED, "inst_tune_with_rule", starts, folder)
        export_adapters(runs, ENHANCED, adapters[ENHANCED])
    for name, method in wanted.items():
        if method == "inst_tune_with_rule" and needs_enhanced:
            adapters[name] = adapters[ENHANCED]  # the same training under another name
        else:
            teachers = adapters[ENHANCED] if method == "rule_distill_enhanced" else starts
            adapters[name] = train_adapters(runs, name, method, teachers, folder)
        export_adapters(runs, name, adapters[name])
        end_if_told()
    return [{name: made[number] for name, made in adapters.items()} for number in range(len(runs))]


def systems_of(run: Run, adapters: dict[str, Adapter]) -> dict[str, System]:
    """The systems to evaluate, by name."""
    known = {
        "base": System(run.start, with_rule=False),
        "base_with_rule": System(run.start, with_rule=True),
        "student": System(adapters["student"], with_rule=False),
        "student_with_rule": System(adapters["student"], with_rule=True),
        "enhanced_with_rule": System(adapters.get(ENHANCED), with_rule=True),
        run.config.method: System(adapters["student"], with_rule=False),
    }
    known |= {name: System(adapter, with_rule=False) for name, adapter in adapters.items() if name in METHODS}
    return {name: known[name] for name in run.config.eval.systems}


def evaluate_all(run: Run, adapters: dict[str, Adapter]) -> dict[str, Any]:
    """Scores every system on every test split and on retain: the content of eval.json."""
    limit = run.config.eval.limit
    splits = {name: part for name, part in run.task.splits.items() if is_test(name)}
    splits = {name: part.select(range(min(limit or len(part), len(part)))) for name, part in splits.items()}
    results: dict[str, Any] = {"splits": {}}
    systems = systems_of(run, adapters)
    try:
        if splits and systems:
            total = sum(map(len, splits.values())) * len(systems)
            options, folder = eval_options(run.config, run.spec), run.workdir / "predictions"
            with progress(total, 0, "answers", "row") as bar:

                def on_batch(rows: int) -> None:
                    bar.update(rows)
                    end_if_told()

                results = evaluate(run.model, splits, systems, run.start, options, run.judges, folder, on_batch)
        else:
            print("no test split or no system: nothing to evaluate")
        return results | {"judge_errors": judge_errors(run)}
    except JudgeError as error:
        command = read_json(run.workdir / RECORD)["command"]
        raise UserError(f"{error}; the predictions are kept, and this goes on from there: {command}") from error


def judge_errors(run: Run) -> dict[str, Any]:
    """How often each split's judge is wrong on outputs that are known to be what the split asks for."""
    errors = {}
    # A file that is absent leaves a split out, but its judge can be measured all the same.
    usual = judges_of(run.config.task.name, run.task.labelled, (), "")
    for split, outputs in run.task.labelled.items():
        judge = run.judges.get(split, usual[split])
        if judge.name != "exact_match":
            verdicts = judge_all(judge, split, "the training outputs", outputs, outputs)
            errors[split] = {"judge": judge.name, "wrong": verdicts.count(False), "n": len(outputs)}
    return errors


def fingerprint(task: RuleTask, folders: Sequence[pathlib.Path]) -> str:
    """A hash of all rows, and of the size and first mebibyte of every weights file in `folders`."""
    digest = hashlib.sha256()
    for split, rows in task.splits.items():
        digest.update(json.dumps([split, list(rows)], sort_keys=True).encode())
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(2**20))
    return digest.hexdigest()


def weight_folders(config: config_dict.ConfigDict) -> list[pathlib.Path]:
    """Where the weights that a run reads lie."""
    return [resolve_folder(name, "model") for name in (config.model.path, config.model.adapter) if name]


def prepare(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    model: LanguageModel | None = None,
    module: str = "rdjax.train",
) -> Run:
    """Reads and checks everything before the folder is made: a mistake leaves nothing behind.

    Args:
      model: the config's, where it is loaded already.
      module: the command that runs, for the record.
    """
    check_workdir(workdir, config)
    task = load_task(config.task, config.seed)
    read = fingerprint(task, weight_folders(config))
    check_same({"the configs": json.dumps(plain(config)), "the data or weights": read})
    model = model or load_model(config.model.path, config.model.dtype, make_mesh(config.mesh), config.model.int8)
    spec, start = starting_adapter(config, model)
    options = eval_options(config, spec)
    outputs = {split: list(rows["output"]) for split, rows in task.splits.items() if is_test(split)}
    judges = judges_of(config.task.name, outputs, config.eval.judges, config.eval.classifier)
    parts = {split: task.splits[split] for split in ("train", "valid") if split in task.splits}
    # Validation takes gold responses where there are any; training takes what the config says.
    gold = {"train": config.task.responses == "gold", "valid": "valid" in parts and all(parts["valid"]["output"])}
    if config.task.only_confirmed:
        for row in (row for split in parts if not gold[split] for row in parts[split]):
            if not row["output"]:
                raise UserError(f"{row['where']}: has no output, by which config.task.only_confirmed would confirm it")
    for name, rows in task.splits.items():
        answered = is_test(name) or not gold.get(name)  # gold pairs are measured themselves
        prompts_of(model, rows, options if answered else dataclasses.replace(options, decoding=Decoding(1)))
    pairs = {"valid": [], **{split: gold_pairs(model, rows, options) for split, rows in parts.items() if gold[split]}}
    for part in pairs.values():
        check_lengths(part, *length_limit(model, config.task.max_length))
    open_workdir(workdir, config, module, read)
    for split in parts:
        if not gold[split]:
            path = workdir / "responses" / f"{split}.jsonl"
            pairs[split] = teacher_pairs(model, parts[split], start, options, config, path)
    log = MetricsLog(workdir)
    return Run(config, workdir, model, task, spec, start, pairs["train"], pairs["valid"], gold["valid"], judges, log)


def is_test(split: str) -> bool:
    """Whether a split is evaluated at the end."""
    return split.startswith("test") or split == RETAIN


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    config = experiment_flags.config("configs/quickstart.py")
    check_config(config)
    end_on_sigterm()
    run = prepare(config, experiment_flags.workdir())
    finished = run.workdir / FINISHED
    if there(finished):
        print(f"{run.workdir} is finished:")
    else:
        report_start(run)
        (adapters,) = train_all([run], run.workdir / "checkpoints")
        write_json(finished, evaluate_all(run, adapters))
        print(f"wrote {run.workdir / 'adapter'}, {finished}")
    from rdjax.page import PAGE, write_page  # here, for to import the drawing takes a while that is not needed before

    if not there(run.workdir / PAGE):
        print(f"wrote {write_page(run.workdir)}")
    run.log.close()
    results = read_json(finished)["splits"]
    if results:
        print(table(results))


if __name__ == "__main__":
    cli.run(main)
