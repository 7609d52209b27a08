"""Tests that fingerprints follow from what a checkpoint computes, and from nothing else."""

import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import base
from rdjax.errors import UserError
from rdjax.models import fingerprint
from rdjax.models.fingerprint import checkpoint_fingerprint, tokenizer_fingerprint, weights_fingerprint
from rdjax.models.load import load_model
from rdjax.parallel.mesh import make_mesh
from tests import tiny


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    tiny.write_random_checkpoint(tmp_path / "model", tiny.LLAMA2)
    return tiny.write_tokenizer(tmp_path / "model", chat_template="{{ messages }}")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Makes the blocks small against the tiny model's tensors, as they are against a real one's."""
    monkeypatch.setattr(fingerprint, "BLOCK_BYTES", 64)


def change_numbers(folder: pathlib.Path, name: str, index: slice) -> None:
    """Adds 1 to some numbers of a tensor, counted in the order of the file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name].reshape(-1)[index] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_same_files_give_the_same_fingerprint(folder, tmp_path):
    tiny.write_tokenizer(tiny.write_random_checkpoint(tmp_path / "copy", tiny.LLAMA2), chat_template="{{ messages }}")
    (tmp_path / "copy" / "README.md").write_text("not read by a run")
    assert checkpoint_fingerprint(tmp_path / "copy") == checkpoint_fingerprint(folder)


@pytest.mark.parametrize("name", sorted(tiny.tensor_shapes(tiny.LLAMA2)))
def test_training_any_one_tensor_changes_it(folder, name):
    before = weights_fingerprint(folder)
    change_numbers(folder, name, np.s_[:])
    assert weights_fingerprint(folder) != before


@pytest.mark.parametrize("index", [np.s_[:1], np.s_[511:512], np.s_[-1:]], ids=["first", "middle", "last"])
def test_the_ends_and_the_middle_of_a_tensor_are_read(folder, index):
    before = weights_fingerprint(folder)
    change_numbers(folder, "model.layers.1.self_attn.q_proj.weight", index)
    assert weights_fingerprint(folder) != before


def test_what_lies_between_the_blocks_is_not_read(folder):
    before = weights_fingerprint(folder)
    change_numbers(folder, "model.layers.1.self_attn.q_proj.weight", np.s_[100:101])
    assert weights_fingerprint(folder) == before


def test_renamed_tensors_change_it(folder):
    before = weights_fingerprint(folder)
    tensors = load_file(folder / "model.safetensors")
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert weights_fingerprint(folder) != before


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("config.json", weights_fingerprint),
        ("generation_config.json", weights_fingerprint),
        ("adapter_config.json", weights_fingerprint),
        ("tokenizer.json", tokenizer_fingerprint),
        ("tokenizer_config.json", tokenizer_fingerprint),
        ("special_tokens_map.json", tokenizer_fingerprint),
        ("chat_template.jinja", tokenizer_fingerprint),
        ("additional_chat_templates/tool_use.jinja", tokenizer_fingerprint),
    ],
)
def test_a_changed_or_added_file_changes_its_part_alone(folder, name, part):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    parts = {weights_fingerprint, tokenizer_fingerprint}
    before = {of: of(folder) for of in parts}, checkpoint_fingerprint(folder)
    path.write_text((path.read_text() if path.exists() else "") + " ")
    assert {of for of in parts if of(folder) != before[0][of]} == {part}
    assert checkpoint_fingerprint(folder) != before[1]


@pytest.mark.parametrize("content", [b"", b"not safetensors", (2).to_bytes(8, "little") + b"[]{}", b"\x02" + b"\0" * 9])
def test_a_file_without_a_header_is_named(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        weights_fingerprint(folder)


def test_a_loaded_model_knows_its_fingerprint(folder):
    model = load_model(str(folder), "float32", make_mesh(base.get_config().mesh))
    assert model.fingerprint == checkpoint_fingerprint(folder)
