"""Hashes what a run reads, so that no folder goes on with other inputs and all processes read the same."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from rdjax.config import plain_config
from rdjax.data.tasks import RuleTask
from rdjax.evaluation.judges import judge_files
from rdjax.models.fingerprint import tokenizer_fingerprint, weights_fingerprint
from rdjax.models.load import resolve_folder
from rdjax.parallel.processes import check_same_everywhere
from rdjax.run.template import read_chat_template
from rdjax.storage.workdir import FINGERPRINT_PARTS


def fingerprint_inputs(config: config_dict.ConfigDict, task: RuleTask) -> dict[str, str]:
    """Returns a hash of each input that a run reads, by its name in `FINGERPRINT_PARTS`."""
    folder = resolve_folder(config.model.path, "model")
    rows: list[Any] = [["wordings", task.wordings]] if task.wordings else []
    rows += [
        [split, [{name: text for name, text in row.items() if text or name != "history"} for row in part]]
        for split, part in task.splits.items()
    ]
    fingerprint = {
        "model": weights_fingerprint(folder),
        "tokenizer": _template_fingerprint(folder, config.task.chat_template),
        "data": hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
    }
    files = [path.read_bytes() for path in judge_files(config.eval.judges) if path.is_file()]
    if files:
        fingerprint["judges"] = hashlib.sha256(b"".join(hashlib.sha256(file).digest() for file in files)).hexdigest()
    for field in ("adapter", "student_adapter"):
        if config.model[field]:
            fingerprint[field] = weights_fingerprint(resolve_folder(config.model[field], "adapter"))
    return fingerprint


def fingerprint_adapters(adapters: Mapping[str, pathlib.Path]) -> str:
    """Returns a hash of the adapters in some folders and of their names."""
    hashes = {name: weights_fingerprint(folder) for name, folder in adapters.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def check_same_inputs(config: config_dict.ConfigDict, fingerprint: Mapping[str, str]) -> None:
    """Checks that all processes have the same config and read the same inputs; UserError names what differs."""
    hashes = {f"the hashes of {FINGERPRINT_PARTS[part]}": digest for part, digest in fingerprint.items()}
    check_same_everywhere({"the configs": json.dumps(plain_config(config)), **hashes})


def _template_fingerprint(folder: pathlib.Path, chat_template: str) -> str:
    """Returns a hash of the tokenizer and its chat templates, and of the file that replaces them, if there is one."""
    tokenizer = tokenizer_fingerprint(folder)
    if not chat_template:
        return tokenizer
    return hashlib.sha256((tokenizer + read_chat_template(chat_template)).encode()).hexdigest()
