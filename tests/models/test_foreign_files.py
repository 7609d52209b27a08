"""A model's folder is not trusted: no code of it runs, no file outside it is read, no size of it is taken unseen."""

import json
import os
import pathlib

import numpy as np
import pytest
from jinja2.exceptions import SecurityError
from safetensors.numpy import load_file, save_file

from configs import base
from rdjax.errors import UserError
from rdjax.models.families.registry import decoder_config_from_hf
from rdjax.models.load import load_model
from rdjax.models.lora import LoraSpec, init_adapter
from rdjax.models.peft_files import load_adapter, save_adapter
from rdjax.parallel.mesh import make_mesh
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    tiny.write_random_checkpoint(folder, tiny.LLAMA3)
    return tiny.write_tokenizer(folder)


def load(folder: pathlib.Path):
    return load_model(str(folder), "float32", make_mesh(base.get_config().mesh))


def refusal(folder: pathlib.Path) -> str:
    with pytest.raises(UserError) as caught:
        load(folder)
    return str(caught.value)


def change_json(path: pathlib.Path, **fields) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))


AUTO = {
    "AutoConfig": "planted.Planted",
    "AutoModelForCausalLM": "planted.Planted",
    "AutoModel": "planted.Planted",
    "AutoTokenizer": ["planted.Planted", "planted.Planted"],
    "AutoProcessor": "planted.Planted",
}


@pytest.mark.parametrize("answer", ["y\n", ""])
def test_no_code_of_the_folder_runs(folder, tmp_path, monkeypatch, answer):
    """Plants code in every place from which transformers could run it, while standard input says yes."""
    mark = tmp_path / "mark"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).write_text('ran')\nclass Planted: pass\n"
    for name in ("planted.py", "tokenization_planted.py", "modeling_llama.py", "configuration_llama.py", "setup.py"):
        (folder / name).write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        change_json(folder / name, auto_map=AUTO)
    change_json(folder / "tokenizer_config.json", tokenizer_class="Planted")
    change_json(folder / "config.json", configuration_files=["config.4.0.0.json"])
    (folder / "config.4.0.0.json").write_text(json.dumps({"model_type": "planted", "auto_map": AUTO}))
    escape = "{{ cycler.__init__.__globals__.os.system('touch " + str(mark) + "') }}"
    (folder / "chat_template.jinja").write_text(escape)
    read = tmp_path / "stdin"
    read.write_text(answer * 50)
    with read.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        try:
            model = load(folder)
        except UserError:
            pass  # refused is right, too
        else:
            with pytest.raises(SecurityError):
                model.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert not mark.exists()


def make_shards(folder: pathlib.Path, name: str) -> None:
    """Names another file in an index, in place of the single one."""
    (folder / "model.safetensors").unlink()
    change_json(folder / "model.safetensors.index.json", weight_map={"model.norm.weight": name})


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "x\0.safetensors", "x.bin", 7, None]
)
def test_an_index_names_files_of_its_folder_alone(folder, name):
    make_shards(folder, name)
    assert "model.safetensors.index.json" in (message := refusal(folder))
    assert "accepted: names of *.safetensors in the same folder" in message


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert f"leads out of the folder, to {tmp_path / 'elsewhere'}" in refusal(folder)


def test_links_of_the_hubs_cache_are_read(folder, tmp_path):
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(folder.iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    assert load(snapshot).config.layers == 2


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"])
def test_a_fifo_keeps_nobody_waiting(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{folder / name}: is no file" in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "2"),
        ("num_hidden_layers", 2.0),
        ("num_hidden_layers", True),
        ("hidden_size", -1),
        ("vocab_size", 2**40),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", 0),
        ("rope_scaling", [1]),
        ("tie_word_embeddings", "false"),
    ],
)
def test_sizes_are_typed_and_bounded(field, value):
    with pytest.raises(UserError, match=rf"config\.json: Expected .* at `\$\.{field}`"):
        decoder_config_from_hf(tiny.LLAMA3 | {field: value}, "config.json")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(folder, value):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 3] = value
    save_file(tensors, folder / "model.safetensors")
    assert refusal(folder) == f"the weights of the model: {name} has numbers that are not finite (NaN or infinity)"


def test_an_adapter_that_is_not_finite_is_named(folder, tmp_path):
    model, spec = load(folder), LoraSpec(2, 2.0, 0.0, ("q_proj",))
    adapter = init_adapter(model.config, spec, 0)
    save_adapter(tmp_path / "adapter", adapter, model.config, spec, "base")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, path)
    with pytest.raises(UserError, match=f"{name} has numbers that are not finite"):
        load_adapter(tmp_path / "adapter", model.config, model.base)
    broken = {path: {"a": ab["a"] * np.nan, "b": ab["b"]} for path, ab in adapter.items()}
    with pytest.raises(UserError, match="has numbers that are not finite"):
        save_adapter(tmp_path / "broken", broken, model.config, spec, "base")
    assert not (tmp_path / "broken").exists()


def test_files_are_readable_as_the_umask_says(folder, tmp_path):
    model, spec = load(folder), LoraSpec(2, 2.0, 0.0, ("q_proj",))
    before = os.umask(0o027)
    try:
        save_adapter(tmp_path / "adapter", init_adapter(model.config, spec, 0), model.config, spec, "base")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "adapter").iterdir()} == {0o640}
