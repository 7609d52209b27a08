"""Trains students on their own answers: rounds in which a student answers, and its teacher reads the same answers.

What a student writes is not what its teacher would have written, and training on the teacher's responses alone never
shows it how to go on from there (on-policy distillation; arXiv 2601.19897, 2602.12275). A round draws answers to the
training inputs without the rule, and then is a stage like any other: its pairs are these answers, behind both prompts.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict

from rdjax.config import ROUND
from rdjax.data.pairs import Pair
from rdjax.distillation.job import VALIDATIONS
from rdjax.distillation.stage import Trained
from rdjax.evaluation.answers import System, answer, answer_record, answered_pairs, recorded_answers
from rdjax.generation.options import Decoding
from rdjax.models.lora import Adapter
from rdjax.run.experiment import Run
from rdjax.run.pairs import written_once
from rdjax.run.stages import delete_signals, train_adapters
from rdjax.storage.metrics import progress_bar


def run_practice(
    runs: Sequence[Run], trained: Sequence[Trained], teachers: Sequence[Adapter], folder: pathlib.Path
) -> list[Trained]:
    """Trains the student of every run in `practice.rounds` rounds on its own answers, side by side.

    Args:
      trained: the students before the first round; the lowest of their rates is that of the rounds, unless the config
        names one.
      teachers: the frozen adapter of each run's teacher.
      folder: of checkpoints; those of a round are in `<folder>/practice_<round>`.

    Returns:
      The students after the last round.
    """
    trained, rate = list(trained), min(one.rate for one in trained)
    for number in range(1, runs[0].config.practice.rounds + 1):
        name = f"{ROUND}{number}"
        rounds = []
        for run, student in zip(runs, trained, strict=True):
            config = config_of_round(run.config, number, rate)
            own = dataclasses.replace(run, config=config, valid=(), initial=student.adapter)
            pairs = [*student_pairs(own, name), *(run.train if run.config.practice.replay else ())]
            rounds.append(dataclasses.replace(own, train=pairs))
        trained = train_adapters(rounds, name, runs[0].config.method, teachers, folder)
        delete_signals(folder)  # the next round has other answers
    return trained


def config_of_round(config: config_dict.ConfigDict, number: int, rate: float) -> config_dict.ConfigDict:
    """Returns a run's config with what `practice` says of a round; the round's last state is its result.

    Args:
      rate: the learning rate, unless `practice` names another.
    """
    changed, practice = copy.deepcopy(config), config.practice
    changed.seed = seed_of_round(config.seed, number)
    changed.loss.logit = practice.logit or config.loss.logit
    changed.optimizer.learning_rate = practice.learning_rate or rate
    changed.train.updates, changed.train.epochs = practice.updates, 0
    changed.train.valid_every, changed.train.checkpoint_every = 0, VALIDATIONS
    return changed


def seed_of_round(seed: int, number: int) -> int:
    """Returns a seed below 2**31 that differs between the rounds of all runs."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1


def student_pairs(run: Run, name: str) -> list[Pair]:
    """Makes pairs of the training inputs and what the student answers to them without the rule.

    An answer that was cut is not taught to end there; one that ends at once is taught that it should not.

    Args:
      run: of a round: with its seed, and the adapter that the student has before it.
      name: of the round. Its answers are in `responses/<name>.jsonl`; a file that exists is read.
    """
    practice, path = run.config.practice, run.workdir / "responses" / f"{name}.jsonl"
    prompts = [pair.prompts for pair in run.train for _ in range(practice.draws)]
    inputs = [prompt.student_text for prompt in prompts]

    def answers() -> Iterator[dict[str, Any]]:
        decoding = Decoding(run.options.decoding.max_new_tokens, temperature=practice.temperature)
        options, student = dataclasses.replace(run.options, decoding=decoding), System(run.initial, with_rule=False)
        with progress_bar(len(prompts), 0, f"{name}: the student's answers", "row") as bar:
            answered = answer(run.model, student, prompts, options, bar.update, run.config.seed)
        rows = ({"input": text, "output": ""} for text in inputs)
        return map(answer_record, rows, answered)

    return answered_pairs(prompts, recorded_answers(written_once(path, inputs, answers)))
