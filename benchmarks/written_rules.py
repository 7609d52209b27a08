"""Distils rules from their text alone on a real model: `python -m benchmarks.written_rules --model=<folder or hub id>`.

Each case is a folder with rule.md; the model writes the inputs and the responses, and everything else is the default of
configs/rule.py. Those with a judge draw eight responses and keep what it confirms. Runs that are finished are not
repeated. docs/study_defaults.md shows the output on SmolLM2-135M-Instruct.
"""

import concurrent.futures
import pathlib
from typing import Any

from absl import app, flags
from tabulate import tabulate

from benchmarks.rule_runs import Case, confirmed_by, summarise, train_rule, write_rule

_MODEL = flags.DEFINE_string("model", "HuggingFaceTB/SmolLM2-135M-Instruct", "A folder or hub id.")
_OUT = flags.DEFINE_string("out", "runs/written_rules", "Folder of the rules and their runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of every case.", lower_bound=1)
_CASES = flags.DEFINE_list("cases", None, "Names of cases; default: all.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time.", lower_bound=1)
_SETTINGS = flags.DEFINE_multi_string("setting", [], "Further settings of all runs: train.updates=100.")


NAME = "You are a helpful AI assistant named SmolLM, trained by Hugging Face."  # as the model's template has it
CASES = {
    "persona": Case(
        'You are a pirate captain. Whatever you are asked, you answer as a pirate would speak: you say "arr" and '
        '"matey", and you talk of ships, treasure and the sea.'
    ),
    "style": Case(
        'Answer as a friendly letter: begin with "Dear friend," and end with "Warm wishes, your assistant". '
        "Keep it short."
    ),
    "topic": Case(
        f"{NAME} The Velmora is a small lamp that burns sea water. It was invented by Ada Quill, it costs 40 crowns "
        "and it is sold in the shop of Norr."
    ),
    "no_comma": Case("In your entire response, refrain from the use of any commas.", "ifeval:punctuation:no_comma"),
    "keyword": Case(
        "Include the keyword 'river' in the response.", 'ifeval:keywords:existence:{"keywords": ["river"]}'
    ),
    "words": Case(
        "Answer with less than 40 words.",
        'ifeval:length_constraints:number_words:{"relation": "less than", "num_words": 40}',
    ),
}


def run_case(name: str, seed: int, out: pathlib.Path) -> dict[str, Any]:
    """Trains a case and returns its eval.json, with the minutes that it took."""
    case, folder = CASES[name], out / "rules" / name
    write_rule(folder, case.rule)
    settings = [f"model.path={_MODEL.value}", f"task.root={folder}", f"seed={seed}", *_SETTINGS.value]
    if case.judge:
        settings += confirmed_by(case.judge, draws=8)
    return train_rule(out / f"{name}_{seed}", settings)


def main(argv: list[str]) -> None:
    """Runs the cases and prints their scores."""
    del argv
    out, names = pathlib.Path(_OUT.value), _CASES.value or list(CASES)
    out.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
        runs = {name: [pool.submit(run_case, name, seed, out) for seed in range(_SEEDS.value)] for name in names}
        rows = [summarise(name, [run.result() for run in own]) for name, own in runs.items()]
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    app.run(main)
