"""The program of a model card runs in transformers and PEFT, from the adapter's folder alone."""

import re
import subprocess
import sys

import pytest

from rdjax import train
from tests.commands import run_command
from tests.test_user_commands import arguments, folder  # noqa: F401  a fixture

pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = pytest.mark.parity


def test_the_program_of_a_card_answers(model, folder, tmp_path):  # noqa: F811
    assert run_command(train.main, *arguments(model, folder, tmp_path / "run")) == 0
    card = (tmp_path / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "run", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
