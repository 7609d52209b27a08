"""The examples and the notebook do what they say: their commands and programs are run."""

import importlib.util
import json
import re
import shlex
import sys

import pytest

from tests.commands import ROOT, checkout, run_in

EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/rule.md"))
QUICK = (
    "--config.train.updates=4",
    "--config.eval.max_new_tokens=4",
    "--config.eval.limit=4",
    "--config.lora.rank=2",
)


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_what_the_defaults_say():
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == hooks().configuration_page()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    cells = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "follows it in" in run_in([sys.executable, "-c", program], checkout(tmp_path))


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
    run_in(arguments, checkout(tmp_path))
    assert (tmp_path / "run" / "eval.json").exists() and (tmp_path / "run" / "adapter" / "README.md").exists()
