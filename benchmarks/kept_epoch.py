"""Compares ways to choose the epoch that is kept: `python -m benchmarks.kept_epoch --model=<folder> --data=<folder>`.

The enhanced teacher and its student train on the published sentiment files with the settings of
configs/sweeps/smollm2_sentiment.py. At each of `--points` epochs, evenly spaced, the validation rows give the
cross-entropy with their gold outputs, the distillation loss (of the student), and the share of answers that the judge
accepts; the test rows give the score that counts. The table has the test score of the epoch that each of these would
keep. The student learns from the last teacher. What is done of a k is not done again.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_dict
from tabulate import tabulate

from configs.sweeps import smollm2_sentiment
from rdjax.data.published import read_aligned
from rdjax.distillation import stage as stages
from rdjax.distillation.job import Job, make_job
from rdjax.distillation.objective import TUNE_WITHOUT_RULE
from rdjax.distillation.progress import Progress, take_member
from rdjax.evaluation.answers import System, answer, prompts_of
from rdjax.evaluation.judges import SPLIT_JUDGES, make_judge
from rdjax.models.lora import Adapter
from rdjax.report.figures import spread
from rdjax.run.experiment import Run
from rdjax.run.prepare import prepare
from rdjax.run.stages import ENHANCED, GOLD_POSITIONS, stage_of
from rdjax.sweep import cell_config

_MODEL = flags.DEFINE_string("model", "HuggingFaceTB/SmolLM2-135M-Instruct", "A folder or hub id.")
_DATA = flags.DEFINE_string("data", None, "The published folder bob_sentiment_experiments.", required=True)
_OUT = flags.DEFINE_string("out", "runs/kept_epoch", "Folder of the runs.")
_KS = flags.DEFINE_list("ks", ["16", "64"], "Numbers of samples.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs at each k, trained side by side.", lower_bound=1)
_POINTS = flags.DEFINE_integer("points", 8, "Epochs that are scored.", lower_bound=1)
_ROWS = flags.DEFINE_integer("rows", 50, "Test rows of each class that are scored.", lower_bound=1)

Point = dict[str, Any]  # what is known of an adapter at one epoch


def valid_rows(run: Run) -> dict[str, list[dict[str, str]]]:
    """Returns the validation rows by the test split whose judge they have; the wording of their rule tells."""
    task = run.config.task
    root = pathlib.Path(task.root)
    topic = read_aligned(root, "test_{}.json")[0]["rule"]
    wording = run.task.splits["train"][0]["rule"]
    rows = read_aligned(root, f"valid_{{}}_{task.k}shot_seed{task.valid_seed}.json")
    named = {"test_on_topic": True, "test_elsewhere": False}
    return {
        split: [{"history": "", **row, "rule": wording} for row in rows if (row["rule"] == topic) == is_topic]
        for split, is_topic in named.items()
    }


def test_rows(run: Run) -> dict[str, list[dict[str, str]]]:
    """Returns the test rows that are scored."""
    return {split: list(run.task.splits[split])[: _ROWS.value] for split in SPLIT_JUDGES["sentiment"]}


def score(run: Run, system: System, rows: dict[str, list[dict[str, str]]]) -> dict[str, float]:
    """Returns the share of accepted answers of each class."""
    scores = {}
    for split, part in rows.items():
        answers = answer(run.model, system, prompts_of(run.model, part, run.options), run.options)
        texts = [answer.text for answer in answers]
        verdicts = make_judge(SPLIT_JUDGES["sentiment"][split], "").verdicts(texts, part)
        scores[split] = float(np.mean(verdicts))
    return scores


@contextmanager
def watch_epochs(on_epoch: Callable[[Job, Progress, int], None]) -> Iterator[None]:
    """Calls a function with the state of every epoch that `rdjax.distillation.stage` ends."""
    end_interval = stages.end_interval

    def end_and_watch(job: Job, reached: Progress, metrics: dict[str, jax.Array], number: int) -> Progress:
        reached = end_interval(job, reached, metrics, number)
        on_epoch(job, reached, number)
        return reached

    with mock.patch.object(stages, "end_interval", end_and_watch):
        yield


def gold_job(job: Job) -> Job:
    """Returns a job whose validation is the cross-entropy with gold outputs, without the rule."""
    stage = dataclasses.replace(job.stage, valid_objective=TUNE_WITHOUT_RULE, valid_positions=GOLD_POSITIONS)
    return make_job(stage, job.model, job.members, job.config, job.folder)


def train_and_score(
    runs: Sequence[Run], name: str, method: str, teachers: Sequence[Adapter], folder: pathlib.Path
) -> tuple[list[Adapter], list[list[Point]]]:
    """Trains a stage and scores its epochs.

    Returns:
      The last adapter of each run, and its points.
    """
    stage, members = stage_of(runs, name, method, teachers)
    epochs = runs[0].config.train.epochs
    chosen = {round(epochs * point / _POINTS.value) for point in range(1, _POINTS.value + 1)}
    rows = [(valid_rows(run), test_rows(run)) for run in runs]
    points: list[list[Point]] = [[] for _ in runs]
    last: list[Adapter] = []
    golds: list[Job] = []

    def on_epoch(job: Job, reached: Progress, epoch: int) -> None:
        if epoch not in chosen:
            return
        gold_M, loss_M = [None] * len(runs), stages.validate(job, reached.state.adapter)
        if job.stage.objective.has_teacher:
            golds[:] = golds or [gold_job(job)]
            gold_M = stages.validate(golds[0], reached.state.adapter)
        last[:] = [take_member(reached.state.adapter, number) for number in range(len(runs))]
        for number, (run, adapter, (valid, test)) in enumerate(zip(runs, last, rows, strict=True)):
            system = System(adapter, with_rule=method == "inst_tune_with_rule")
            scores = {"valid": score(run, system, valid), "test": score(run, system, test)}
            point = {"epoch": epoch, "loss": loss_M[number], "gold": gold_M[number], **scores}
            points[number].append(point)
            print(name, run.config.task.k, run.config.seed, json.dumps(point), flush=True)

    with watch_epochs(on_epoch):
        stages.run_stage(stage, runs[0].model, members, runs[0].config, folder / name)
    return last, points


def config_of(k: int, seed: int) -> config_dict.ConfigDict:
    """Returns the config of one run: all epochs are trained, and validation is the loss that is minimised."""
    sweep = smollm2_sentiment.get_config()
    sweep.model.path, sweep.task.root = _MODEL.value, _DATA.value
    sweep.train.valid_every, sweep.train.valid_loss, sweep.train.checkpoint_every = 1, "training", 0
    return cell_config(sweep, "rule_distill_enhanced", k, seed)


def run_k(k: int, out: pathlib.Path) -> dict[str, list[list[Point]]]:
    """Trains and scores the teacher and the student at one k, or reads what an earlier call found."""
    path = out / f"k{k}_{_SEEDS.value}_{_POINTS.value}_{_ROWS.value}.json"
    if path.exists():
        return json.loads(path.read_text())
    runs: list[Run] = []
    for seed in range(_SEEDS.value):
        model = runs[0].model if runs else None
        runs.append(prepare(config_of(k, seed), out / f"k{k}_seed{seed}", model, "benchmarks.kept_epoch"))
    folder = out / f"checkpoints_k{k}"
    teachers, teacher = train_and_score(runs, ENHANCED, "inst_tune_with_rule", [run.start for run in runs], folder)
    _, student = train_and_score(runs, "student", "rule_distill_enhanced", teachers, folder)
    found = {"enhanced teacher": teacher, "student": student}
    path.write_text(json.dumps(found, indent=1))
    return found


def balanced(scores: dict[str, float]) -> float:
    """Returns the mean over the two classes."""
    return float(np.mean(list(scores.values())))


CRITERIA: dict[str, Callable[[Point], float]] = {
    "gold cross-entropy": lambda point: -(point["loss"] if point["gold"] is None else point["gold"]),
    "distillation loss": lambda point: -point["loss"],
    "judge": lambda point: balanced(point["valid"]),
    "last epoch": lambda point: point["epoch"],
    "best on the test": lambda point: balanced(point["test"]),
}


def summarise(k: int, name: str, points: list[list[Point]]) -> Iterator[dict[str, Any]]:
    """Yields a row of the table for each way to choose."""
    for criterion, value in CRITERIA.items():
        if criterion == "distillation loss" and points[0][0]["gold"] is None:
            continue  # the teacher is tuned
        kept = [max(own, key=lambda point: (value(point), point["epoch"])) for own in points]
        tests = [[point["test"][split] for point in kept] for split in SPLIT_JUDGES["sentiment"]]
        yield {
            "k": k,
            "adapter": name,
            "kept by": criterion,
            "epochs kept": ", ".join(str(point["epoch"]) for point in kept),
            "of": points[0][-1]["epoch"],
            **{
                title: spread(values)
                for title, values in zip(("negative on topic", "positive elsewhere"), tests, strict=True)
            },
            "mean": f"{np.mean([balanced(point['test']) for point in kept]):.2f}",
        }


def main(argv: list[str]) -> None:
    """Trains, scores and prints the table."""
    del argv
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in map(int, _KS.value):
        for name, points in run_k(k, out).items():
            rows += summarise(k, name, points)
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    app.run(main)
