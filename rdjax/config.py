"""Checks a run's config, and converts it to the plain form that config.json holds."""

import json
import math
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict

from rdjax.defaults import get_config
from rdjax.errors import UserError

DISTILLED = ("rule_distill_base", "rule_distill_enhanced")  # the methods that have a teacher
METHODS = (*DISTILLED, "inst_tune_without_rule", "inst_tune_with_rule")
ROUND = "practice_"  # what the names of the stages of practice begin with
SYSTEMS = ("base", "base_with_rule", "student", "student_with_rule", "enhanced_with_rule")
SIGNAL_STORES = ("device", "host", "disk")  # of cached teacher signals, the fastest first
# The projections of attention, of gated delta nets (Qwen 3.5), and of the MLP.
TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
DEFAULT_HIDDEN_WEIGHT = 2.44  # the authors' beta of 10000 at their width of 4096

ONE_DEVICE = {"data": 1, "fsdp": 1, "tensor": 1}

LOGIT_TERMS = ("kl", "reverse_kl", "jsd", "entropy", "none")

CHOICES = {
    "method": METHODS,
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.remat": ("none", "full", "dots"),
    "task.name": ("arithmetic", "sentiment", "safety", "rule"),
    "task.template": ("auto", "alpaca", "chat"),
    "task.rule_place": ("", "system", "user"),
    "task.responses": ("auto", "gold", "teacher"),
    "task.inputs": ("auto", "file", "written"),
    "task.generated.value": ("sum", "difference", "larger", "smaller", "first", "second"),
    "loss.logit": LOGIT_TERMS,
    "practice.logit": ("", *LOGIT_TERMS),
    "loss.hidden_positions": ("response", "shared"),
    "loss.reduction": ("token", "sample"),
    "loss.variant": ("ours", "published"),
    "optimizer.schedule": ("cosine", "linear", "constant"),
    "train.valid_loss": ("training", "gold"),
    "train.teacher_signals": ("cached", "online", *SIGNAL_STORES),
}

SEVERAL_CHOICES = {
    "lora.targets": TARGETS,
    "eval.systems": SYSTEMS + METHODS,
    "log.trackers": ("wandb", "mlflow"),
}

POSITIVE = ("loss.temperature", "lora.alpha", "task.written.temperature")

AT_LEAST = {
    "task.k": 0,
    "task.max_length": 1,
    "task.temperature": 0,
    "task.top_k": 0,
    "task.generated.test_rows": 1,
    "task.draws": 1,
    "task.written.on_rule": 8,
    "task.written.off_rule": 0,
    "task.written.max_tokens": 4,
    "loss.retain_weight": 0,
    "loss.consistency_weight": 0,
    "lora.rank": 1,
    "lora.dropout": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.clip_norm": 0,
    "optimizer.weight_decay": 0,
    "practice.rounds": 0,
    "practice.updates": 1,
    "practice.draws": 1,
    "practice.temperature": 0,
    "loss.top_k": 0,
    "train.updates": 0,
    "train.min_updates": 0,
    "train.patience": 0,
    "train.epochs": 0,
    "train.batch_size": 1,
    "train.accumulation": 1,
    "train.valid_every": 0,
    "train.checkpoint_every": 1,
    "eval.max_new_tokens": 1,
    "eval.beams": 1,
    "eval.batch_size": 1,
    "eval.limit": 0,
    "eval.gap_rows": 0,
    "log.profile": 0,
    "mesh.data": -1,
    "mesh.fsdp": -1,
    "mesh.tensor": -1,
    "plan.samples": 1,
    "plan.rule_tokens": 1,
    "plan.prompt_tokens": 1,
    "plan.response_tokens": 1,
}


def _get(config: config_dict.ConfigDict, path: str) -> Any:
    """Returns the value of a dotted path such as "train.epochs"."""
    for name in path.split("."):
        if name not in config:
            raise UserError(f"config.{path} is missing; a config starts from configs/base.py")
        config = config[name]
    return config


def check_config(config: config_dict.ConfigDict) -> None:
    """Checks every value against the accepted ones, and values against each other.

    Raises:
      UserError: names the field, its value and what would be accepted.
    """
    _check_choices(config)
    _check_ranges(config)
    _check_task(config)
    _check_judges(config.eval.judges)
    _check_loss(config.loss)
    _check_practice(config)
    _check_method(config)
    if not config.lora.targets:
        raise UserError("config.lora.targets is empty; accepted: any of " + ", ".join(TARGETS))
    if config.train.batch_size % config.train.accumulation:
        raise UserError(
            f"config.train.batch_size = {config.train.batch_size} is not a multiple of "
            f"config.train.accumulation = {config.train.accumulation}"
        )


def _check_choices(config: config_dict.ConfigDict) -> None:
    """Checks the fields that take one or several of a list of names."""
    for path, accepted in CHOICES.items():
        if _get(config, path) not in accepted:
            names = ", ".join(str(choice) for choice in accepted)
            raise UserError(f"config.{path} = {_get(config, path)!r} is unknown; accepted: {names}")
    for path, accepted in SEVERAL_CHOICES.items():
        for name in _get(config, path):
            if name not in accepted:
                raise UserError(f"config.{path}: {name!r} is unknown; accepted: {', '.join(accepted)}")


def _check_ranges(config: config_dict.ConfigDict) -> None:
    """Checks the fields that take a number of some range."""
    for path, least in AT_LEAST.items():
        if not least <= _get(config, path) < math.inf:  # NaN is in no range
            raise UserError(f"config.{path} = {_get(config, path)!r}; accepted: a finite number, {least} or more")
    rate = _get(config, "optimizer.learning_rate")
    if rate != "auto" and not (isinstance(rate, int | float) and 0 < rate < math.inf):
        raise UserError(f"config.optimizer.learning_rate = {rate!r}; accepted: auto, or a number above 0")
    for path in POSITIVE:
        if not 0 < _get(config, path) < math.inf:
            raise UserError(f"config.{path} = {_get(config, path)!r} must be positive")
    if not 0 <= _get(config, "seed") < 2**31:
        raise UserError(f"config.seed = {config.seed}; accepted: 0 to {2**31 - 1}")
    for axis in ONE_DEVICE:
        if not config.mesh[axis]:
            raise UserError(f"config.mesh.{axis} = 0; accepted: 1 or more, or -1 for what the other axes leave")
    if not 0 < config.task.top_p <= 1:
        raise UserError(f"config.task.top_p = {config.task.top_p}; accepted: a probability above 0")
    if config.lora.dropout >= 1:
        raise UserError(f"config.lora.dropout = {config.lora.dropout}; accepted: a probability below 1")


def _check_judges(judges: Sequence[object]) -> None:
    """Checks that judges are named by texts."""
    for judge in judges:
        if not isinstance(judge, str):
            raise UserError(f"config.eval.judges: {judge!r} is no name of a judge; accepted: ('test=json',)")


def _check_task(config: config_dict.ConfigDict) -> None:
    """Checks the fields that say which responses are learnt, and how the teacher writes them."""
    task = config.task
    if (task.top_k or task.top_p < 1) and not task.temperature:
        raise UserError("config.task.top_k and config.task.top_p are about drawing: set config.task.temperature too")
    if task.remove_rule:
        needed = {"task.name": "rule", "method": "rule_distill_base"}
        for path, accepted in needed.items():
            if _get(config, path) != accepted:
                raise UserError(f"config.task.remove_rule goes with config.{path} = {accepted}")
        if not config.model.student_adapter:
            raise UserError("config.task.remove_rule needs config.model.student_adapter, which has learnt the rule")
        if task.responses == "gold" or task.inputs == "written":
            raise UserError(
                "config.task.remove_rule goes with config.task.responses = auto or teacher and with inputs from "
                "train.jsonl: the base answers them without the rule"
            )
    if task.inputs != "file" and task.name != "rule":
        raise UserError(f"config.task.inputs = {task.inputs!r} needs config.task.name = rule, your own folder")
    if not 0 <= task.hold_out < 1:
        raise UserError(f"config.task.hold_out = {task.hold_out}; accepted: a share below 1")
    if task.draws > 1 and not task.temperature:
        raise UserError(f"config.task.draws = {task.draws}: all draws would be the same; set config.task.temperature")
    if task.only_confirmed and task.responses == "gold":
        raise UserError("config.task.only_confirmed goes with config.task.responses = 'teacher'")
    if needs_enhanced(config) and task.responses == "teacher":
        raise UserError(
            "config.task.responses = 'teacher' does not go with an enhanced teacher, which is tuned on gold outputs; "
            "accepted: gold"
        )


def _check_loss(loss: config_dict.ConfigDict) -> None:
    """Checks that the loss has one weight for hidden states, and something to minimise."""
    if loss.hidden_weight is not None and loss.hidden_beta is not None:
        raise UserError(
            "config.loss.hidden_weight and config.loss.hidden_beta are both set; accepted: one of "
            "the two (hidden_weight is hidden_beta over the model's width)"
        )
    for name in ("hidden_weight", "hidden_beta", "retain_hidden_weight"):
        if loss[name] is not None and not loss[name] >= 0:  # written so that NaN is refused too
            raise UserError(f"config.loss.{name} = {loss[name]!r} is too small; accepted: 0 or more")
    if loss.retain_hidden_weight and not hidden_weight(loss, 1):
        raise UserError(
            f"config.loss.retain_hidden_weight = {loss.retain_hidden_weight} goes with "
            "config.loss.hidden_weight above 0; accepted without it: 0"
        )
    if any(not isinstance(layer, int) or layer < 0 for layer in loss.hidden_layers):
        raise UserError(f"config.loss.hidden_layers = {loss.hidden_layers}; accepted: numbers of layers from 0")
    _check_terms("loss.logit", loss.logit, loss)


def _check_method(config: config_dict.ConfigDict) -> None:
    """Checks that what only distillation reads is not set where nothing is distilled."""
    loss = config.loss
    if loss.terms and not {config.method, *config.eval.systems} & {*DISTILLED}:
        raise UserError(f"config.loss.terms = {tuple(loss.terms)}: config.method = {config.method} has no such terms")
    if loss.top_k and "reverse_kl" not in (loss.logit, config.practice.logit):
        raise UserError(
            f"config.loss.top_k = {loss.top_k} needs config.loss.logit or config.practice.logit = reverse_kl"
        )


def _check_terms(field: str, logit: str, loss: config_dict.ConfigDict) -> None:
    """Checks that a loss has a term; `field` says what its logits are compared by."""
    if logit == "none" and not hidden_weight(loss, 1) and not loss.terms:
        raise UserError(f"config.{field} = 'none' and config.loss.hidden_weight = 0 leave nothing to distil")


def _check_practice(config: config_dict.ConfigDict) -> None:
    """Checks that rounds of practice have a teacher, pairs and a loss, and that something trains the student."""
    practice = config.practice
    if not practice.rounds:
        if not config.train.updates and not config.train.epochs:
            raise UserError("config.train.updates = 0 trains nothing; accepted: 1 or more, or config.practice.rounds")
        return
    others = {config.method, *config.eval.systems} & {*METHODS, "enhanced_with_rule"} - {"rule_distill_base"}
    if others and not config.train.updates and not config.train.epochs:
        raise UserError(f"config.train.updates = 0 would leave {others.pop()} untrained; accepted: 1 or more")
    if config.method not in DISTILLED:
        raise UserError(
            f"config.practice.rounds = {practice.rounds} needs a teacher, which config.method = {config.method} has "
            f"not; accepted: {' or '.join(DISTILLED)}"
        )
    if config.loss.variant == "published":
        raise UserError("config.practice.rounds goes with config.loss.variant = ours")
    if practice.learning_rate is not None and not practice.learning_rate > 0:
        raise UserError(f"config.practice.learning_rate = {practice.learning_rate}; accepted: a number above 0")
    if practice.draws > 1 and not practice.temperature:
        raise UserError(
            f"config.practice.draws = {practice.draws}: all answers would be the same; set config.practice.temperature"
        )
    _check_terms("practice.logit", practice.logit, config.loss)


def needs_enhanced(config: config_dict.ConfigDict) -> bool:
    """Tells whether a run trains an enhanced teacher, for its method or for a system that it evaluates."""
    return bool({config.method, *config.eval.systems} & {"rule_distill_enhanced", "enhanced_with_rule"})


def baselines(config: config_dict.ConfigDict) -> list[str]:
    """Returns the methods that a run trains as baselines, beside its own."""
    return [name for name in config.eval.systems if name in METHODS and name != config.method]


def hidden_weight(loss: config_dict.ConfigDict, width: int) -> float:
    """Returns the weight of mean_l ||u_t - u_s||^2: `hidden_weight`, or the authors' `hidden_beta` over the width."""
    if loss.hidden_beta is not None:
        return loss.hidden_beta / width
    return DEFAULT_HIDDEN_WEIGHT if loss.hidden_weight is None else loss.hidden_weight


def plain_config(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Converts a config to what JSON gives back: nested dicts, with lists in the place of tuples."""
    return json.loads(json.dumps(config.to_dict(), default=list))


def differences(current: dict[str, Any], recorded: dict[str, Any], prefix: str = "") -> list[str]:
    """Lists the fields in which two plain configs differ, as "train.epochs: 3 there, 20 here".

    A field that an earlier version did not have counts as empty there: new fields are empty by default, and then mean
    what was done before. A section that it did not have counts as the default, which does nothing.
    """
    found: list[str] = []
    for name in sorted({*current, *recorded}):
        here, there = current.get(name), recorded.get(name)
        if name not in recorded and not here:
            continue
        if name not in recorded and isinstance(here, dict):
            there = plain_config(get_config()).get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            found += differences(here, there, f"{prefix}{name}.")
        elif here != there:
            found.append(f"{prefix}{name}: {there!r} there, {here!r} here")
    return found
