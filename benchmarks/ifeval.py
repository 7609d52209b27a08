"""Distils instructions of IFEval, each as a rule: `python -m benchmarks.ifeval --rows=<file> --model=<folder>`.

`--rows` is a copy of S-IFEval (normster/SystemCheck, evals/ifeval/inputs/sys_ifeval.jsonl) or a part of it: rows with
`messages`, a system message that holds the constraint and a user's turn that holds the task. Of each instruction below
the wording is the rule, and the user's turns of all rows are the inputs, divided once for all instructions:

* train: the model answers them with the rule in the user's message, and the checker of the instruction
  (`if-verifiable`) confirms the first good one of several drawn answers;
* test: no sample shows them; the checker judges base, base with rule and student;
* retain: turns with their own system message, which the student must answer as the base does. Half of them are trained
  on, the others tested: the student's divergence from the base is what it forgot.

Runs that are finished are not repeated. Needs the extra [judges].
"""

import json
import pathlib
import random
from typing import Any

from absl import app, flags
from tabulate import tabulate

from benchmarks.rule_runs import Case, confirmed_by, summarise, train_rule, write_rows, write_rule

_ROWS = flags.DEFINE_string("rows", None, "sys_ifeval.jsonl, or a part of it.", required=True)
_MODEL = flags.DEFINE_string("model", "HuggingFaceTB/SmolLM2-135M-Instruct", "A folder or hub id.")
_OUT = flags.DEFINE_string("out", "runs/ifeval", "Folder of the rules and their runs.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of every instruction.", lower_bound=1)
_CASES = flags.DEFINE_list("cases", None, "Names of instructions; default: all.")
_UPDATES = flags.DEFINE_integer("updates", 100, "The most updates of a run.", lower_bound=1)

TEST, RETAIN = 64, 32  # rows; the others train
MOST_CHARACTERS = 140  # of a user's turn


INSTRUCTIONS = {
    "title": Case(
        "Your answer must contain a title wrapped in double angular brackets, such as <<poem of joy>>.",
        "ifeval:detectable_format:title",
    ),
    "spanish": Case(
        "Your entire response should be in Spanish, no other language is allowed.",
        'ifeval:language:response_language:{"language": "es"}',
    ),
    "highlight": Case(
        "Highlight at least 1 section of your answer with markdown, for example *highlighted section*.",
        'ifeval:detectable_format:number_highlighted_sections:{"num_highlights": 1}',
    ),
    "sections": Case(
        "Your response must have at least 2 sections. Mark the beginning of each section with SECTION X, such as:\n"
        "SECTION 1\n[content of section 1]\nSECTION 2\n[content of section 2]",
        'ifeval:detectable_format:multiple_sections:{"section_spliter": "SECTION", "num_sections": 2}',
    ),
    "bullets": Case(
        "Your answer must contain exactly 3 bullet points. Use the markdown bullet points such as:\n* This is a point.",
        'ifeval:detectable_format:number_bullet_lists:{"num_bullets": 3}',
    ),
    "words": Case(
        "Answer with less than 40 words.",
        'ifeval:length_constraints:number_words:{"relation": "less than", "num_words": 40}',
    ),
    "keyword": Case(
        "Include the keyword 'river' in the response.", 'ifeval:keywords:existence:{"keywords": ["river"]}'
    ),
    "placeholders": Case(
        "The response must contain at least 2 placeholders represented by square brackets, such as [address].",
        'ifeval:detectable_content:number_placeholders:{"num_placeholders": 2}',
    ),
}


def divide_turns() -> dict[str, list[dict[str, Any]]]:
    """Divides the user's turns into the rows of train, test and retain."""
    lines = pathlib.Path(_ROWS.value).read_text(encoding="utf-8").splitlines()
    chats = {row["messages"][-1]["content"]: row["messages"] for row in map(json.loads, filter(None, lines))}
    turns = sorted(turn for turn in chats if len(turn) <= MOST_CHARACTERS)
    random.Random(0).shuffle(turns)
    test, retain, train = turns[:TEST], turns[TEST : TEST + RETAIN], turns[TEST + RETAIN :]
    return {
        "train": [{"input": turn} for turn in train],
        "test": [{"input": turn} for turn in test],
        "retain": [{"messages": chats[turn]} for turn in retain],
    }


def run_instruction(name: str, seed: int, out: pathlib.Path) -> dict[str, Any]:
    """Trains a student on an instruction and returns its eval.json, with the minutes that it took."""
    instruction, folder = INSTRUCTIONS[name], out / "rules" / name
    write_rule(folder, instruction.rule)
    for split, rows in divide_turns().items():
        write_rows(folder / f"{split}.jsonl", rows)
    settings = [
        *(f"model.path={_MODEL.value}", f"task.root={folder}", f"seed={seed}", "task.rule_place=user"),
        *("task.responses=teacher", *confirmed_by(instruction.judge, draws=4)),
        *(f"train.updates={_UPDATES.value}", "eval.systems=('base','base_with_rule','student')"),
    ]
    return train_rule(out / f"{name}_{seed}", settings)


def main(argv: list[str]) -> None:
    """Trains the students and prints their scores."""
    del argv
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    names = _CASES.value or list(INSTRUCTIONS)
    rows = [summarise(name, [run_instruction(name, seed, out) for seed in range(_SEEDS.value)]) for name in names]
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    app.run(main)
