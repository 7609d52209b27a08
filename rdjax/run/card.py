"""Writes the model card of an adapter: what the hub shows of it, the rule, the scores, how to use it, its limits."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from rdjax.data.splits import is_retained
from rdjax.data.templates import alpaca_prompt
from rdjax.evaluation.results import GAP_CLOSED, KL_FROM_BASE, split_metrics
from rdjax.evaluation.verdict import verdict
from rdjax.models.load import EMBEDDED
from rdjax.run.adapter_folder import ENDS
from rdjax.storage.files import replace_text, user_path

CARD = "README.md"
PAPER = "[arXiv 2311.08883](https://arxiv.org/abs/2311.08883)"
DISTILLED = f"It was trained by rule distillation ({PAPER}) with `rdjax`: "
METHOD_WORDS = {
    "rule_distill_base": DISTILLED + "the base with the rule in its prompt was the teacher.",
    "rule_distill_enhanced": DISTILLED + "the base, tuned with the rule in its prompt, was the teacher.",
    "inst_tune_without_rule": "It was tuned with `rdjax` on outputs that follow the rule.",
    "inst_tune_with_rule": "It was tuned with `rdjax` on outputs that follow the rule, with the rule in the prompt.",
}
PEFT_USE = """from peft import PeftModel
from transformers import {auto_class}, AutoTokenizer

folder = "{folder}"
tokenizer = AutoTokenizer.from_pretrained(folder)
base = {auto_class}.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, folder)
"""
MERGED_USE = """from transformers import {auto_class}, AutoTokenizer

folder = "{folder}"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto_class}.from_pretrained(folder)
"""
CHAT = """messages = [{"role": "user", "content": "..."}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True{extra})
print(tokenizer.decode(model.generate(**ids, max_new_tokens=64{ends})[0, ids["input_ids"].shape[1]:]))
"""
ALPACA = """prompt = {prompt}
ids = tokenizer(prompt, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=64{ends})[0, ids["input_ids"].shape[1]:]))
"""


def card_text(
    results: Mapping[str, Any],
    record: Mapping[str, Any],
    base: str,
    auto_class: str,
    prompt: Mapping[str, Any],
    merged: bool = False,
    folder: str = "adapter",
) -> str:
    """Returns the text of a model card.

    Args:
      results: the content of eval.json.
      record: the content of config.json.
      base: folder or hub id of the base model.
      auto_class: of transformers, which loads the base.
      prompt: how the student is prompted (`adapter_folder.read_prompt_fields`).
      merged: whether the folder holds a whole model.
      folder: where its user is told to find it.
    """
    parts = [
        front_matter(base, merged),
        *heading(record["config"], "a model" if merged else "a LoRA adapter"),
        "## The rule",
        "\n".join(f"> {line}" for line in results.get("rule", "").splitlines()),
        "## How well it follows it",
        "\n".join(f"* {sentence}" for sentence in verdict(results)) or "It was not evaluated.",
        scores_table(results),
        "## How to use it",
        "Prompt it as in training: " + prompt_words(prompt) + ". Leave the rule out.",
        "```python\n" + use_text(base, auto_class, prompt, merged, folder).rstrip() + "\n```",
        "## Limits",
        "\n".join(f"* {limit}" for limit in limits(results, record)),
        "## How it was made",
        f"```\n{record['command']}\n```",
        f"Seed {record['config']['seed']}, {record['devices']}, "
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(config: Mapping[str, Any], kind: str) -> tuple[str, str]:
    """Returns the title and what the model does; one whose rule was removed does not follow it any more."""
    if config["task"].get("remove_rule"):
        text = f"This model has unlearnt the rule below. {DISTILLED}the base that reads no rule was the teacher."
        return f"# A rule, removed from {kind}", text
    text = "This model follows the rule below without it in the prompt. " + METHOD_WORDS[config["method"]]
    return f"# A rule, distilled into {kind}", text


def front_matter(base: str, merged: bool) -> str:
    """Returns the metadata that the hub reads."""
    kind = "finetune" if merged else "adapter"
    is_hub_id = base.count("/") == 1 and not user_path(base).exists()
    lines = ["---", f"library_name: {'transformers' if merged else 'peft'}", "pipeline_tag: text-generation"]
    lines += [f"base_model: {base}"] if is_hub_id else []
    lines += ["tags:", "- rdjax", "- rule-distillation", *(() if merged else ("- lora",))]
    lines += [f"- base_model:{kind}:{base}"] if is_hub_id else []
    return "\n".join([*lines, "---"])


def scores_table(results: Mapping[str, Any]) -> str:
    """Returns the scores as a Markdown table, a row for each system on each split."""
    metrics, rows = split_metrics(results), []
    for split, systems in results["splits"].items():
        for system, scores in systems.items():
            metric = metrics[split]
            judged = metric not in (GAP_CLOSED, KL_FROM_BASE)
            rows.append(
                {
                    "split": split,
                    "system": system,
                    "metric": metric if judged else "-",
                    "score": _number(scores[metric], 2) if judged else "-",
                    "gap closed": "-" if is_retained(split) else _number(scores[GAP_CLOSED], 2),
                    "KL from the base": _number(scores.get(KL_FROM_BASE), 3),
                    "inputs": scores["n"],
                }
            )
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) if rows else ""


def _number(value: float | None, digits: int) -> str:
    """Writes a number, and a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def prompt_words(prompt: Mapping[str, str]) -> str:
    """Says how the model is prompted."""
    if prompt["template"] != "chat":
        return "the Alpaca template"
    arguments = prompt["template_args"]
    return "the tokenizer's chat template" + (f" with the arguments {arguments}" if arguments else "")


def use_text(base: str, auto_class: str, prompt: Mapping[str, Any], merged: bool, folder: str) -> str:
    """Returns a program that loads the model and asks it something."""
    load = (MERGED_USE if merged else PEFT_USE).replace("{auto_class}", auto_class)
    load = load.replace("{folder}", folder).replace("{base}", base)
    ends = prompt.get(ENDS, ())  # a merged model's own files have them
    ends = "" if merged or len(ends) < 2 else f", eos_token_id={ends}"
    if prompt["template"] != "chat":
        return load + "\n" + ALPACA.replace("{prompt}", repr(alpaca_prompt("", "..."))).replace("{ends}", ends)
    arguments = json.loads(prompt["template_args"] or "{}")
    extra = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return load + "\n" + CHAT.replace("{extra}", extra).replace("{ends}", ends)


def limits(results: Mapping[str, Any], record: Mapping[str, Any]) -> Sequence[str]:
    """Says what the scores do not show."""
    config = record["config"]
    metrics = split_metrics(results)
    found = ["Not tested: inputs of other kinds, in other languages, or in longer conversations than in training."]
    if config["method"] == "rule_distill_base" and not config["task"].get("remove_rule"):
        found.append("The student learns what the base with the rule in its prompt does, its mistakes too.")
    if metrics and all(metric in (GAP_CLOSED, KL_FROM_BASE) for metric in metrics.values()):
        found.append("No judge looked at the answers: the gap closed says how close the predictions are, not how good.")
    if not any(map(is_retained, results["splits"])):
        found.append("What it forgot was not measured.")
    return found


def write_card(folder: pathlib.Path, text: str) -> None:
    """Writes a card into a folder."""
    replace_text(folder / CARD, text)


def base_name(name: str, path: str) -> str:
    """Returns the base as a reader of the card knows it: the embedded models by their short names."""
    return path if path in EMBEDDED else name
