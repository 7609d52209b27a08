"""The walk through a rule of one's own does what it says: its commands and its program are run."""

import re
import shlex
import sys

import pytest

from tests.commands import ROOT, checkout, run_in

SHORT = " --config.train.updates=20 --config.eval.limit=8"


@pytest.mark.slow
def test_the_walk_through_a_rule_of_ones_own(tmp_path):
    """Runs every shell command and the program of docs/own_rule.md, in order; trainings and tests are short."""
    page = (ROOT / "docs" / "own_rule.md").read_text(encoding="utf-8")
    clone = checkout(tmp_path)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 7
    printed = ""
    for command in commands:
        words = command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
        printed += run_in(["bash", "-c", words + (SHORT if "--config=" in command else "")], clone)
    assert "the student, which does not read the rule, follows it in" in printed
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    program = program.replace("eval__max_new_tokens=8", "eval__max_new_tokens=8, train__updates=20, eval__limit=8")
    assert "follows it in" in run_in([sys.executable, "-c", program], clone)
