"""Every reader takes what it is given, or refuses it with a UserError: nothing else, and soon.

`python -m tests.faults.long --mutations=20000` tries more.
"""

import contextlib
import pathlib
import random
import shutil
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from rdjax.errors import UserError
from rdjax.models.load import load_model
from rdjax.models.lora import LoraSpec, init_adapter
from rdjax.models.peft_files import save_adapter
from rdjax.parallel.mesh import make_mesh
from tests import tiny
from tests.faults.damage import mutate
from tests.faults.readers import Reader, readers

SLOWEST = 10.0  # seconds


def make_folder(folder: pathlib.Path) -> tuple[object, dict]:
    """Writes a tiny model with an adapter; returns its config and its parameters."""
    tiny.write_random_checkpoint(folder, tiny.LLAMA2)
    tiny.write_tokenizer(folder)
    model = load_model(str(folder), "float32", make_mesh(base.get_config().mesh))
    config = model.config
    spec = LoraSpec(2, 2.0, 0.0, ("q_proj", "v_proj"))
    save_adapter(folder, init_adapter(config, spec, 0), config, spec, "base")
    (folder / "rule.md").write_text("The rule.\n")
    (folder / "train.jsonl").write_text('{"input": "a", "output": "b"}\n')
    return config, model.base


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return folder, readers(*make_folder(folder))


NAMES = list(readers(None, None))


def read_mutated(reader: Reader, sound: pathlib.Path, folder: pathlib.Path, seed: int) -> None:
    """Reads a mutated file; anything but success and UserError is raised."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    content = (folder / reader.name).read_bytes() if reader.content is None else reader.content.encode()
    (folder / reader.name).write_bytes(mutate(content, random.Random(seed)))
    began = time.monotonic()
    with contextlib.suppress(UserError):
        reader.read(folder)
    assert time.monotonic() - began < SLOWEST


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_file_is_read(sound, tmp_path, name):
    folder, known = sound
    shutil.copytree(folder, tmp_path / "x")
    reader = known[name]
    if reader.content is not None:
        (tmp_path / "x" / reader.name).write_text(reader.content)
    if name in ("index", "sums"):  # what they name is not there
        return
    reader.read(tmp_path / "x")


@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_file_is_read_or_refused(sound, tmp_path_factory, name):
    folder, known = sound
    place = tmp_path_factory.mktemp("mutated") / "x"

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 2**32))
    def check(seed):
        read_mutated(known[name], folder, place, seed)

    check()
