"""Prepares a run: reads and checks the config, the task, the model and the pairs."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

from ml_collections import config_dict

from rdjax.config import RETAIN, hidden_weight, plain_config
from rdjax.data.pairs import Pair, check_lengths, make_pair, make_prompts
from rdjax.data.tasks import RuleTask, load_task
from rdjax.errors import UserError
from rdjax.evaluation.answers import EvalOptions, System, answer, length_limit, prompts_of
from rdjax.evaluation.divergence import GAP_NEAR_ZERO, gap_to_close
from rdjax.evaluation.judges import BUILT_IN, Judge, judges_of
from rdjax.generation.options import Decoding
from rdjax.models.load import LanguageModel, load_model, resolve_folder
from rdjax.models.lora import Adapter, LoraSpec, init_adapter, load_adapter
from rdjax.parallel.mesh import make_mesh, put, replicated
from rdjax.parallel.processes import check_same_everywhere, exists_on_first
from rdjax.storage.files import read_lines, write_lines
from rdjax.storage.metrics import MetricsLog
from rdjax.storage.workdir import check_workdir, open_workdir


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
    if not exists_on_first(path):
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


def fingerprint(task: RuleTask, folders: Sequence[pathlib.Path]) -> str:
    """A hash of all rows, and of the size and first mebibyte of every weights file in `folders`."""
    digest = hashlib.sha256()
    for split, rows in task.splits.items():
        digest.update(json.dumps([split, list(rows)], sort_keys=True).encode())
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(2**20))
    return digest.hexdigest()


def model_folders(config: config_dict.ConfigDict) -> list[pathlib.Path]:
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
    read = fingerprint(task, model_folders(config))
    check_same_everywhere({"the configs": json.dumps(plain_config(config)), "the data or weights": read})
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
