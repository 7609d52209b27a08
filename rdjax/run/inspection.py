"""Collects what a user should know before training: renderings, lengths, overlaps, the base's scores, the cost."""

import resource
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import config_dict

from rdjax.config import baselines, needs_enhanced
from rdjax.data.pairs import Pair
from rdjax.data.rows import student_input
from rdjax.data.splits import is_evaluated, is_retained
from rdjax.distillation.optimizer import with_auto_rate
from rdjax.distillation.trial import try_updates
from rdjax.evaluation.answers import length_limit
from rdjax.evaluation.results import split_metrics
from rdjax.generation.inputs import NEAR, overlap, words_of
from rdjax.run.experiment import Run
from rdjax.run.pipeline import evaluate_systems, rule_of
from rdjax.run.stages import stage_of
from rdjax.storage.workdir import PREDICTIONS

SAMPLES = 3  # pairs that are shown
EXAMPLES = 5  # overlaps that are shown


def inspect_run(run: Run) -> dict[str, Any]:
    """Measures everything; the base's answers are kept in the workdir, where training finds them.

    Returns:
      {"rule", "notes", "samples", "lengths", "limit", "rows", "overlaps", "results", "cost"}, all plain.
    """
    # Answers of an earlier inspection are only read: that says nothing about the time to generate some.
    generates, began = not (run.workdir / PREDICTIONS).exists(), time.monotonic()
    systems = {"base": run.base, "base_with_rule": run.base_with_rule}
    results = evaluate_systems(run, systems)
    answering = time.monotonic() - began
    limit, field = length_limit(run.model, run.config.task.max_length)
    return {
        "rule": rule_of(run.task),
        "notes": [*run.task.notes, *run.options.template.notes],
        "samples": [describe_pair(run, pair) for pair in run.train[:SAMPLES]],
        "lengths": token_lengths([*run.train, *run.valid]),
        "limit": {"tokens": limit, "field": field},
        "rows": {name: len(rows) for name, rows in run.task.splits.items()},
        "overlaps": find_overlaps(run),
        "results": results,
        "cost": estimate_cost(run, answering / len(systems) if generates else None),
    }


def describe_pair(run: Run, pair: Pair) -> dict[str, Any]:
    """Returns both prompts of a pair as text, its response with the end, and where it comes from."""
    tokenizer = run.model.tokenizer
    end = tokenizer.convert_ids_to_tokens(run.model.eos_ids[0]) if pair.ended else ""
    return {
        "where": pair.prompts.where,
        "teacher": pair.prompts.teacher_text,
        "student": pair.prompts.student_text,
        "response": tokenizer.decode(pair.response_ids) + end,
        "ended": pair.ended,
        "shared": pair.prompts.shared + len(pair.response_ids),
    }


def token_lengths(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Returns the least, the median and the most tokens of prompts and responses."""
    lengths = {
        "teacher's prompt": [len(pair.prompts.teacher_ids) for pair in pairs],
        "student's prompt": [len(pair.prompts.student_ids) for pair in pairs],
        "response": [len(pair.response_ids) for pair in pairs],
        "teacher's prompt and response": [len(pair.prompts.teacher_ids) + len(pair.response_ids) for pair in pairs],
    }
    return {
        name: {"least": min(values), "median": statistics.median(values), "most": max(values)}
        for name, values in lengths.items()
    }


def find_overlaps(run: Run) -> dict[str, Any]:
    """Counts inputs that come twice in training, and those of a test that training has too, or nearly."""
    train = [student_input(row) for row in run.task.splits["train"]]
    words = [words_of(" ".join(text)) for text in train]
    found: dict[str, Any] = {"twice in train": len(train) - len(set(train))}
    for split, rows in run.task.splits.items():
        if is_evaluated(split):
            texts = [student_input(row) for row in rows]
            near = [
                max((overlap(words_of(" ".join(text)), other) for other in words), default=0.0) >= NEAR
                for text in texts
                if text not in train
            ]
            same = [row["input"] for row, text in zip(rows, texts, strict=True) if text in train]
            found[split] = {"also in train": len(same), "near one of train": sum(near), "examples": same[:EXAMPLES]}
    return found


def estimate_cost(run: Run, answering: float | None) -> dict[str, Any]:
    """Takes a few updates, and estimates from them how long training and evaluation take, and how much memory.

    Args:
      answering: seconds that one system took for all test rows; None: not known.
    """
    config, practice = with_auto_rate(run.config, run.model.config.width), run.config.practice
    rounds = 1
    if not trains_first(config):  # the student learns by practice alone
        config.train.updates, rounds = practice.updates, practice.rounds
    stage, members = stage_of([run], "student", config.method, [run.start])
    trial = try_updates(stage, run.model, members, config, run.workdir / "checkpoints" / "signals")
    further_systems = max(len(config.eval.systems) - 2, 0)
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "device": jax.devices()[0].device_kind,
        "preparing_seconds": trial.preparing,
        "update_seconds": trial.update,
        "updates": trial.updates * rounds,
        "training_seconds": trial.preparing + trial.update * trial.updates * rounds,
        "further_training": further_training(run.config),
        "evaluation_seconds": None if answering is None else answering * further_systems,
        "device_bytes": peak,
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def trains_first(config: config_dict.ConfigDict) -> bool:
    """Tells whether the student learns from the training pairs before it practises."""
    return bool(config.train.updates or config.train.epochs)


def further_training(config: config_dict.ConfigDict) -> list[str]:
    """Lists what a run trains beside the student's own updates, which alone are timed."""
    found = [*(["the enhanced teacher"] if needs_enhanced(config) else []), *baselines(config)]
    if config.practice.rounds and trains_first(config):
        found.append(f"{config.practice.rounds} rounds of practice with {config.practice.updates} updates each")
    return found


def inspection_lines(found: dict[str, Any]) -> list[str]:
    """Returns what the screen shows of `inspect_run`, the renderings left out."""
    lines = [f"note: {note}" for note in found["notes"]]
    rows = ", ".join(f"{name} {count}" for name, count in found["rows"].items())
    lines.append(f"rows: {rows}")
    for name, sizes in found["lengths"].items():
        lines.append(f"tokens of the {name}: {sizes['least']} to {sizes['most']}, median {sizes['median']:g}")
    limit = found["limit"]
    lines.append(f"the limit is {limit['field']} = {limit['tokens']}")
    for name, part in found["overlaps"].items():
        if name == "twice in train":
            lines.append(f"inputs that come twice in train: {part}")
        else:
            lines.append(
                f"{name}: {part['also in train']} inputs are also in train, {part['near one of train']} nearly"
            )
    results, metrics = found["results"], split_metrics(found["results"])
    for split, systems in results["splits"].items():
        base, ruled = systems["base"], systems["base_with_rule"]
        if not is_retained(split):
            lines.append(f"{split}: gap to close {base['kl']:.3f} nats per token")
        if metrics[split] in base and metrics[split] not in ("gap_closed", "kl_from_base"):
            name = metrics[split]
            lines.append(f"{split}: {name} of the base {base[name]:.2f}, with the rule in its prompt {ruled[name]:.2f}")
    for split, rates in results["flips"].items():
        if not is_retained(split):
            lines.append(
                f"{split}: the rule in the prompt turns {rates['wrong_to_right']:.0%} of answers from wrong to right, "
                f"{rates['right_to_wrong']:.0%} from right to wrong"
            )
    return [*lines, *cost_lines(found["cost"])]


def cost_lines(cost: dict[str, Any]) -> list[str]:
    """Says how long a run takes and how much memory."""
    memory = cost["device_bytes"]
    where = f"{memory / 2**30:.1f} GiB on the device, " if memory else ""
    further, evaluation = cost["further_training"], cost["evaluation_seconds"]
    known = f"about {evaluation / 60:.1f} minutes of" if evaluation is not None else "an"
    then = f"then {known} evaluation"
    return [
        f"training of the student: at most {cost['updates']} updates of {cost['update_seconds']:.2f} s after "
        f"{cost['preparing_seconds']:.0f} s of preparation, {cost['training_seconds'] / 60:.1f} minutes on "
        f"{cost['device']}; {then}",
        *([f"not in this estimate: the training of {', '.join(further)}"] if further else []),
        f"memory so far: {where}{cost['host_bytes'] / 2**30:.1f} GiB on the host",
    ]
