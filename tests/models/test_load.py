"""Checkpoints as strangers have them: what is read as transformers reads it, and what is refused in one line."""

import json
import pathlib
import types

import numpy as np
import pytest
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.numpy import load_file, save_file

from configs import base
from rdjax.errors import UserError
from rdjax.models import load
from rdjax.models.families.registry import decoder_config_from_hf, read_decoder_config
from rdjax.models.load import load_model, resolve_folder
from rdjax.models.weights import untie_other_head
from rdjax.parallel.mesh import make_mesh
from tests import tiny

PLANTED = "raise SystemExit('code of the checkpoint ran')"


@pytest.fixture
def folder(tmp_path):
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA3)
    return tiny.write_tokenizer(tmp_path)


def loaded(folder: pathlib.Path) -> load.LanguageModel:
    return load_model(str(folder), "float32", make_mesh(base.get_config().mesh))


def change_json(path: pathlib.Path, **fields) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))


def test_a_stored_head_that_differs_is_not_tied(folder):
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": head.copy()}, folder / "model.safetensors")
    assert loaded(folder).config.tied_embeddings
    save_file(tensors | {"lm_head.weight": head + 1}, folder / "model.safetensors")
    model = loaded(folder)
    assert not model.config.tied_embeddings
    np.testing.assert_array_equal(model.base["lm_head"]["kernel"], (head + 1).T)


def test_heads_are_compared_in_blocks(folder, monkeypatch):
    monkeypatch.setattr("rdjax.models.weights.COMPARED_ROWS", 100)
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += 1
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    assert not untie_other_head(folder, tiny.load_decoder(folder).config).tied_embeddings


def test_a_single_file_counts_before_an_index(folder):
    """As in transformers: an index beside it may be left over from another way of saving."""
    change_json(folder / "model.safetensors.index.json", weight_map={"model.norm.weight": "gone.safetensors"})
    assert loaded(folder).config.layers == 2


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [(None, None, [257]), ([5, 6], None, [257, 5, 6]), (5, [7], [257, 7]), ([5], {}, [257, 5])],
)
def test_responses_end_at_the_tokens_that_the_files_name(folder, config, generation, ends):
    change_json(folder / "config.json", eos_token_id=config)
    if generation is not None:
        change_json(folder / "generation_config.json", **({"eos_token_id": generation} if generation else {}))
    assert loaded(folder).eos_ids == tuple(ends)


def test_what_generation_leaves_out_is_told(folder, caplog):
    change_json(folder / "generation_config.json", repetition_penalty=1.05, length_penalty=1.0, suppress_tokens=None)
    loaded(folder)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("generation_config.json: repetition_penalty = 1.05 is not applied to what rdjax generates")


def test_an_adapter_beside_the_weights_is_refused(folder):
    change_json(folder / "adapter_config.json", peft_type="LORA")
    with pytest.raises(UserError, match=r"adapter_config\.json: the folder holds a model and an adapter"):
        loaded(folder)


def test_the_chat_template_of_a_processor_is_read(folder):
    change_json(folder / "chat_template.json", chat_template="{{ messages }}")
    assert loaded(folder).tokenizer.chat_template == "{{ messages }}"
    change_json(folder / "chat_template.json", chat_template=["a"])
    with pytest.raises(UserError, match=r"chat_template\.json: Expected `str`"):
        loaded(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("ends", ["</s>", 2.5, [2, "3"], {"a": 1}, -1])
def test_ends_that_are_no_tokens_are_named(folder, name, ends):
    change_json(folder / name, eos_token_id=ends)
    with pytest.raises(UserError, match="eos_token_id"):
        loaded(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_pointers_of_git_lfs_are_named(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=rf"{name}: a pointer of git-lfs"):
        loaded(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_other_quantisations_are_named(folder, method):
    change_json(folder / "config.json", quantization_config={"quant_method": method})
    with pytest.raises(UserError, match=rf"{method}.*accepted: fp8"):
        loaded(folder)


def test_integers_without_scales_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].astype(np.int8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name} is of int8 and has no scales"):
        loaded(folder)


def test_half_precision_and_mixed_dtypes_are_read(folder):
    tensors = load_file(folder / "model.safetensors")
    mixed = {
        name: x.astype(np.float16) if number % 2 else x for number, (name, x) in enumerate(sorted(tensors.items()))
    }
    save_file(mixed, folder / "model.safetensors")
    np.testing.assert_allclose(loaded(folder).base["embed_tokens"], tensors["model.embed_tokens.weight"], atol=2e-3)


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_never_runs(folder, place, monkeypatch):
    """Neither does it ask: standard input would answer yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (folder / "planted.py").write_text(PLANTED)
    classes = {name: "planted.Planted" for name in ("AutoConfig", "AutoModelForCausalLM")}
    change_json(folder / place, auto_map=classes | {"AutoTokenizer": ["planted.Planted", "planted.Planted"]})
    try:
        assert loaded(folder).config.layers == 2
    except UserError as error:
        assert str(folder) in str(error)


def hub(monkeypatch, **functions):
    """A hub that answers as given, and counts the downloads of whole repositories."""
    downloads = []
    fake = {"hf_hub_download": None, "snapshot_download": lambda *_, **__: downloads.append(1)} | functions
    monkeypatch.setattr(load, "huggingface_hub", types.SimpleNamespace(**fake))
    return downloads


def test_an_unsupported_model_is_refused_before_its_weights_are_downloaded(monkeypatch, tmp_path):
    change_json(tmp_path / "config.json", model_type="mamba")
    downloads = hub(monkeypatch, hf_hub_download=lambda *_: str(tmp_path / "config.json"))
    with pytest.raises(UserError, match=r"an/owner: config\.json: model_type 'mamba' .*accepted: llama, qwen2"):
        resolve_folder("an/owner", "model")
    assert not downloads


def test_a_supported_model_is_downloaded(monkeypatch, folder):
    hub(
        monkeypatch,
        hf_hub_download=lambda repo, name: str(folder / name),
        snapshot_download=lambda *_, **__: str(folder),
    )
    assert resolve_folder("an/owner", "model") == folder


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, r"'an/owner' is gated: accept its terms at https://huggingface\.co/an/owner"),
        (RepositoryNotFoundError, r"'an/owner' is neither a folder nor a repository of the hub"),
        (EntryNotFoundError, r"'an/owner': the repository has no config\.json"),
        (LocalEntryNotFoundError, r"'an/owner' is no folder and not in the hub's cache"),
    ],
)
def test_what_the_hub_says_is_told(monkeypatch, error, message):
    def fail(*_, **__):
        raise error.__new__(error)

    hub(monkeypatch, hf_hub_download=fail)
    with pytest.raises(UserError, match=message):
        resolve_folder("an/owner", "model")


def test_a_misspelt_folder_is_named():
    with pytest.raises(UserError, match=r"'\./no/such/folder' is neither a folder"):
        resolve_folder("./no/such/folder", "model")


def test_added_tokens_without_an_embedding_are_loaded_and_refused_in_texts(folder):
    """The tokenizer of Gemma 3 270M and 1B has an image token that their embeddings have no row for."""
    fields = json.loads((folder / "tokenizer.json").read_text())
    image = fields["added_tokens"][0] | {"id": tiny.VOCAB, "content": "<image>"}
    (folder / "tokenizer.json").write_text(json.dumps(fields | {"added_tokens": [*fields["added_tokens"], image]}))
    model = loaded(folder)
    assert len(model.tokenizer) == tiny.VOCAB + 1
    ids = model.tokenizer("a <image>")["input_ids"]
    with pytest.raises(UserError, match="row 3: the model has no embedding for the token '<image>'"):
        load.check_embedded(model, ids, "row 3")
    load.check_embedded(model, ids[:-1], "row 3")


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder):
    change_json(folder / "config.json", vocab_size=100)
    with pytest.raises(UserError, match="the tokenizer has 258 tokens, the embedding only 100 rows"):
        load.load_tokenizer(folder, read_decoder_config(folder))


def test_text_configs_of_gemma_3_and_mistral_3_may_leave_out_their_sizes():
    """As published: only what differs from the class in transformers."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    config = decoder_config_from_hf({"model_type": "gemma3", "text_config": text}, "here")
    assert (config.vocab, config.heads, config.head_width, config.width) == (262208, 8, 256, 2560)
    config = decoder_config_from_hf({"model_type": "mistral3", "text_config": {"model_type": "ministral3"}}, "here")
    assert (config.vocab, config.heads, config.head_width, config.layers) == (131072, 32, 128, 34)


def test_longrope_is_refused_where_no_family_reads_its_long_factors():
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}
    scaling["original_max_position_embeddings"] = 64
    with pytest.raises(UserError, match="'longrope' is not supported for model_type 'llama'"):
        decoder_config_from_hf(tiny.LLAMA2 | {"rope_scaling": scaling}, "here")
