"""The pages, examples and the notebook do what they say: their commands and programs are run."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.commands import ROOT, checkout

EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/rule.md"))
QUICK = ("--config.train.updates=4", "--config.eval.max_new_tokens=4", "--config.lora.rank=2")


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_what_the_defaults_say():
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == hooks().configuration_page()


def run(arguments: list[str], cwd: pathlib.Path) -> str:
    """Runs a command and returns what it prints; it must succeed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_walk_through_a_rule_of_ones_own(tmp_path):
    """Runs every shell command and the program of docs/own_rule.md, in order, each word for word."""
    page = (ROOT / "docs" / "own_rule.md").read_text(encoding="utf-8")
    clone = checkout(tmp_path)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 7
    printed = ""
    for command in commands:
        printed += run(["bash", "-c", command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)], clone)
    assert "the student, which does not read the rule, follows it in" in printed
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "follows it in" in run([sys.executable, "-c", program], clone)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    cells = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "follows it in" in run([sys.executable, "-c", program], checkout(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, model, tmp_path):
    """With the settings of its README and a few updates; what is learnt shows on the models that it names."""
    settings: list[str] = []
    readme = ROOT / "examples" / name / "README.md"
    if readme.exists():
        command = re.search(r"```\n(python -m rdjax\.train .*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)[1]
        settings = [word for word in shlex.split(command.replace("\\\n", " ")) if word.startswith("--config.")]
        settings = [word for word in settings if not word.startswith(("--config.model.path", "--config.task.root"))]
    arguments = [sys.executable, "-m", "rdjax.train", "--config=configs/rule.py", f"--config.model.path={model}"]
    arguments += [f"--config.task.root=examples/{name}", "--workdir=run", *settings, *QUICK]
    run(arguments, checkout(tmp_path))
    assert (tmp_path / "run" / "eval.json").exists() and (tmp_path / "run" / "adapter" / "README.md").exists()
