"""Defines the rulebook model: its config, its first weights, its logits, and the folder it is written to."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import config_dict
from transformers import PreTrainedTokenizerFast

from rdjax.models.attention import shared_prefix_mask
from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.decoder import Decoder
from rdjax.models.rotary import make_rope
from rdjax.models.weights import save_params
from rdjax.rulebook.batches import Packed
from rdjax.rulebook.tokenizer import TAGGED_PLACES, tagged_digit

ROPE_THETA = 10000.0


def decoder_config(model: config_dict.ConfigDict) -> DecoderConfig:
    """Returns the decoder's config for the recipe's `model` section."""
    return DecoderConfig(
        vocab=model.vocab,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_width=model.width // model.heads,
        feed_forward=model.feed_forward,
        norm_epsilon=1e-6,
        max_positions=1024,
        tied_embeddings=True,
        pattern=(LayerKind(make_rope({"rope_theta": ROPE_THETA}, model.width // model.heads, 1024)),),
    )


def init_model(
    config: DecoderConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Returns the decoder's graph and its first weights."""
    graph, state = nnx.split(Decoder(config, rngs=nnx.Rngs(seed)))
    params = nnx.to_pure_dict(state)
    params["embed_tokens"] = share_digits(params["embed_tokens"], tokenizer, seed)
    return graph, params


def share_digits(embedding_VD: jax.Array, tokenizer: PreTrainedTokenizerFast, seed: int) -> jax.Array:
    """Starts each tagged digit as its plain digit plus a vector of its place, so that places learn from each other."""
    ids = tokenizer.convert_tokens_to_ids
    places = 0.02 * jax.random.normal(jax.random.key(seed), (len(TAGGED_PLACES), embedding_VD.shape[1]))
    for place, vector in zip(TAGGED_PLACES, places, strict=True):
        for digit in range(10):
            start = embedding_VD[ids(str(digit))] + vector
            embedding_VD = embedding_VD.at[ids(tagged_digit(digit, place))].set(start)
    return embedding_VD


def forward(graph: nnx.GraphDef, params: dict[str, Any], batch: Packed) -> jax.Array:
    """Computes the logits [B, T, V]."""
    decoder = nnx.merge(graph, params)
    out = decoder(batch.tokens_BT, batch.positions_BT, shared_prefix_mask(batch.segments_BT))
    return decoder.logits(out.final_BPD)


def write_model(
    folder: pathlib.Path, config: DecoderConfig, tokenizer: PreTrainedTokenizerFast, params: dict[str, Any]
) -> None:
    """Writes a Hugging Face folder; weights in float16, which has three more bits of mantissa than bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    special["pad_token_id"] = tokenizer.pad_token_id
    fields = hugging_face_fields(config) | special
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")
    save_params(folder, config, params, np.float16)


def hugging_face_fields(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields of config.json, without the special tokens."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.feed_forward,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.max_positions,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float16",
    }
