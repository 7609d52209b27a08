"""Settles what `auto` means in a run's `task` section, and makes the template of its prompts."""

import copy

from ml_collections import config_dict
from transformers import PreTrainedTokenizerBase

from rdjax.config import check_config
from rdjax.data.chat import read_arguments
from rdjax.data.pairs import make_template
from rdjax.data.tasks import RuleTask
from rdjax.data.templates import Template
from rdjax.errors import UserError
from rdjax.storage.files import read_text, user_path


def settle_task(
    config: config_dict.ConfigDict, tokenizer: PreTrainedTokenizerBase, task: RuleTask
) -> config_dict.ConfigDict:
    """Returns the config with what `auto` means in its `task` section for this tokenizer and these rows.

    Raises:
      UserError: other fields do not go with it.
    """
    settled = copy.deepcopy(config)
    if settled.task.template == "auto":
        has_template = bool(settled.task.chat_template or tokenizer.chat_template)
        settled.task.template = "chat" if has_template else "alpaca"
    if settled.task.responses == "auto" and "train" in task.splits and not task.wordings:
        has_gold = all(task.splits["train"]["output"]) and not settled.task.remove_rule
        settled.task.responses = "gold" if has_gold else "teacher"
        check_config(settled)  # what goes with gold outputs or with the teacher's
    return settled


def task_template(config: config_dict.ConfigDict, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Returns the template of the prompts; `config` is the run's `task` section.

    Raises:
      UserError: a field or the file of the chat template is faulty, or the template is not fit for training.
    """
    if config.template != "chat":
        for name in ("rule_place", "template_args", "chat_template"):
            if config[name]:
                raise UserError(f"config.task.{name} = {config[name]!r} needs config.task.template = chat")
        return make_template(config.template, tokenizer)
    arguments = read_arguments(config.template_args, "config.task.template_args")
    source = read_chat_template(config.chat_template) if config.chat_template else ""
    return make_template("chat", tokenizer, config.rule_place, arguments, source)


def read_chat_template(chat_template: str) -> str:
    """Reads the file of `task.chat_template`."""
    path = user_path(chat_template)
    return read_text(path, f"config.task.chat_template: {path} not found")
