"""Holds what is settled before training: an experiment can be evaluated, a run can be trained too."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import config_dict

from rdjax.data.pairs import Pair
from rdjax.data.tasks import RuleTask
from rdjax.evaluation.answers import EvalOptions, System
from rdjax.evaluation.judges import Judge
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, LoraSpec
from rdjax.storage.metrics import MetricsLog


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Holds what evaluating needs, of a run or without one.

    Attributes:
      options: how systems answer.
      spec, start: form of the adapters, and the adapter that teacher and student start from.
      judges: of the splits that have one.
    """

    config: config_dict.ConfigDict
    workdir: pathlib.Path
    model: LanguageModel
    task: RuleTask
    options: EvalOptions
    spec: LoraSpec
    start: Adapter
    judges: dict[str, Judge]

    @property
    def base(self) -> System:
        """Returns the base without the rule."""
        return System(self.start, with_rule=False)

    @property
    def base_with_rule(self) -> System:
        """Returns the base with the rule in its prompt."""
        return System(self.start, with_rule=True)


@dataclasses.dataclass(frozen=True)
class Run(Experiment):
    """Holds what all stages of a run share.

    Attributes:
      train, valid: pairs; `valid` may be empty.
      retained: by split, pairs whose answers are to stay unchanged: inputs off the rule, and near misses.
      valid_is_gold: whether validation is on gold outputs, by their cross-entropy.
      initial: the adapter from which the student is trained; `start`, unless the config names another.
    """

    train: Sequence[Pair]
    valid: Sequence[Pair]
    retained: Mapping[str, Sequence[Pair]]
    valid_is_gold: bool
    initial: Adapter
    log: MetricsLog
