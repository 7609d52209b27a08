"""Lists all readers of files that may be damaged or odd, each with a sound example."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from configs import base, rule
from rdjax.data.chat import read_arguments
from rdjax.data.own_folder import read_own_folder
from rdjax.data.rows import read_json_list
from rdjax.generate import read_rule
from rdjax.models.families.registry import read_decoder_config
from rdjax.models.load import load_tokenizer, read_eos_ids
from rdjax.models.peft_files import load_adapter
from rdjax.models.tensor_files import index_tensors
from rdjax.run.adapter_folder import PROMPT_FILE, read_prompt_fields
from rdjax.storage.metrics import read_metrics
from rdjax.storage.records import (
    Effects,
    Input,
    Prediction,
    Response,
    Results,
    RunRecord,
    Sweep,
    read_record,
    read_records,
)
from rdjax.storage.sums import SUMS, damaged_files
from rdjax.storage.workdir import check_workdir

PREDICTION = {"input": "a", "gold": "b", "response": "c", "ids": [1, 2], "ended": True, "prompt": "p", "correct": True}
RESPONSE = {"input": "a", "gold": "", "response": "c", "ids": [1], "ended": True, "confirmed": True, "accepted": 1}
SCORES = {"student": {"exact_match": 0.5, "gap_closed": 0.9, "kl": 0.1, "n": 2, "mean_response_tokens": 3.0}}
RESULTS = {
    "splits": {"test": SCORES},
    "metric": {"test": "exact_match"},
    "hidden_distance": {"test": {"student": [0.1]}},
}
LINES = '{"input": "one", "output": "1"}\n{"messages": [{"role": "user", "content": "two"}]}\n'
ROWS = [{"instruction": "r", "input": "one", "output": "1"}, {"instruction": "r", "input": "two", "output": "2"}]
METRICS = '{"stage": "student", "step": 1, "loss": 0.5}\n{"stage": "student", "step": 2, "loss": NaN}\n'


class Reader(NamedTuple):
    """Holds a reader.

    Attributes:
      name: of the file, below a folder of its own.
      content: a sound one; None for the file's own in the folder that is copied.
      read: takes the folder.
    """

    name: str
    content: str | None
    read: Callable[[pathlib.Path], object]


def own(folder: pathlib.Path) -> object:
    return read_own_folder(folder, rule.get_config().task)


def readers(config: object, params: object) -> Mapping[str, Reader]:
    """Returns the readers by name.

    Args:
      config, params: of the tiny model whose files are in each folder.
    """
    record = json.dumps({"config": base.get_config().to_dict(), "command": "python -m rdjax.train", "fingerprint": {}})
    return {
        "rule.md": Reader("rule.md", "The rule.\n", own),
        "rule": Reader("rule.md", "The rule.\n", lambda folder: read_rule(f"@{folder / 'rule.md'}")),
        "train.jsonl": Reader("train.jsonl", LINES, own),
        "retain.jsonl": Reader("retain.jsonl", LINES, own),
        "published": Reader("x.json", json.dumps(ROWS, indent=1), lambda folder: read_json_list(folder / "x.json")),
        "model config": Reader("config.json", None, read_decoder_config),
        "tokenizer": Reader("tokenizer.json", None, lambda folder: load_tokenizer(folder, config)),
        "tokenizer config": Reader("tokenizer_config.json", None, lambda folder: load_tokenizer(folder, config)),
        "generation config": Reader(
            "generation_config.json",
            '{"eos_token_id": [1, 2], "temperature": 0.6}',
            lambda folder: read_eos_ids(folder, {"eos_token_id": 1}, 0),
        ),
        "weights": Reader("model.safetensors", None, index_tensors),
        "index": Reader(
            "model.safetensors.index.json",
            '{"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.safetensors"}}',
            lambda folder: index_tensors(_without_single(folder)),
        ),
        "adapter config": Reader("adapter_config.json", None, lambda folder: load_adapter(folder, config, params)),
        "adapter": Reader("adapter_model.safetensors", None, lambda folder: load_adapter(folder, config, params)),
        "prompt": Reader(PROMPT_FILE, '{"template": "chat", "template_args": ""}', read_prompt_fields),
        "arguments": Reader(
            "x", '{"enable_thinking": true}', lambda folder: read_arguments(_text(folder / "x"), "task.template_args")
        ),
        "record": Reader("config.json", record, lambda folder: check_workdir(folder, base.get_config())),
        "run record": Reader("config.json", record, lambda folder: read_record(folder / "config.json", RunRecord)),
        "eval": Reader("eval.json", json.dumps(RESULTS), lambda folder: read_record(folder / "eval.json", Results)),
        "sweep": Reader(
            "sweep.json",
            json.dumps({"cells": [{"method": "m", "k": 4, "seed": 0, **RESULTS}], "failed": []}),
            lambda folder: read_record(folder / "sweep.json", Sweep),
        ),
        "predictions": Reader(
            "x", json.dumps(PREDICTION) + "\n", lambda folder: read_records(folder / "x", Prediction)
        ),
        "responses": Reader("x", json.dumps(RESPONSE) + "\n", lambda folder: read_records(folder / "x", Response)),
        "inputs": Reader("x", '{"input": "a"}\n', lambda folder: read_records(folder / "x", Input)),
        "effects": Reader(
            "x", '{"inputs": ["a", "b"], "effects": [0.1, 0.2]}', lambda folder: read_record(folder / "x", Effects)
        ),
        "metrics": Reader("metrics.jsonl", METRICS, lambda folder: read_metrics(folder / "metrics.jsonl")),
        "sums": Reader(SUMS, f"{'0' * 64}  config.json\n", damaged_files),
    }


def _without_single(folder: pathlib.Path) -> pathlib.Path:
    """Removes the single weights file, which would count before an index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder


def _text(path: pathlib.Path) -> str:
    """Reads what a flag would hold."""
    return path.read_bytes().decode("utf-8", "surrogateescape")
