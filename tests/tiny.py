"""Tiny models and a tiny tokenizer for tests, made with numpy alone."""

import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rdjax.models.config import DecoderConfig
from rdjax.models.decoder import Decoder, Output, projection_shapes
from rdjax.models.families.registry import decoder_config_from_hf, read_decoder_config
from rdjax.models.lora import LoraSpec
from rdjax.models.weights import abstract_params, checkpoint_shapes, load_params

BOS, EOS = "<s>", "</s>"
VOCAB = 258  # 256 bytes, BOS and EOS

_COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
}

LLAMA1 = _COMMON | {"rms_norm_eps": 1e-6}
LLAMA2 = _COMMON | {"num_key_value_heads": 2}
# The rotary pairs of a head of 16 fall into all three bands of the scaling: kept, blended, divided.
LLAMA3 = _COMMON | {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
BIASED = _COMMON | {
    "num_key_value_heads": 1,
    "attention_bias": True,
    "mlp_bias": True,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
}
LLAMAS = {"llama1": LLAMA1, "llama2": LLAMA2, "llama3": LLAMA3, "biased": BIASED}


def _family(model_type: str, **fields: Any) -> dict[str, Any]:
    """A config of another family, with two key-value heads."""
    without = {"architectures", "hidden_act"} if "hidden_activation" in fields else {"architectures"}
    common = {name: value for name, value in LLAMA2.items() if name not in without}
    return common | {"model_type": model_type, **fields}


# transformers gives a tokenizer beside a Qwen 2 config a token more.
QWEN2 = _family("qwen2", vocab_size=264, rope_theta=1e6, tie_word_embeddings=True)
QWEN2_WINDOW = _family("qwen2", vocab_size=264, use_sliding_window=True, sliding_window=9, max_window_layers=1)
QWEN3 = _family("qwen3", head_dim=16, rope_theta=1e6, attention_bias=True)
_DELTA_NET = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
_DELTA_NET |= {"linear_value_head_dim": 12, "linear_conv_kernel_dim": 4}
QWEN3_5 = _family(
    "qwen3_5_text", head_dim=16, num_hidden_layers=4, full_attention_interval=2, attention_bias=True, **_DELTA_NET
)
MISTRAL = _family("mistral", head_dim=16, sliding_window=9)
SMOLLM3 = _family("smollm3", num_hidden_layers=4, no_rope_layer_interval=2, pad_token_id=None)
_MULTIPLIERS = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}
_MULTIPLIERS["logits_scaling"] = 4.0
GRANITE = _family("granite", **_MULTIPLIERS, attention_bias=True, mlp_bias=True)
OLMO2 = _family("olmo2")
GEMMA2 = _family(
    "gemma2",
    head_dim=16,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=12,
    sliding_window=9,
    attn_logit_softcapping=5.0,
    final_logit_softcapping=4.0,
    tie_word_embeddings=True,
)
GEMMA3 = _family(
    "gemma3_text",
    num_hidden_layers=4,
    head_dim=16,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=12,
    sliding_window=9,
    sliding_window_pattern=3,
    rope_theta=1e6,
    rope_local_base_freq=1e4,
    rope_scaling={"rope_type": "linear", "factor": 8.0},
    tie_word_embeddings=True,
)
_GEMMA4 = {"head_dim": 16, "global_head_dim": 32, "sliding_window": 9, "hidden_activation": "gelu_pytorch_tanh"}
_GEMMA4 |= {"tie_word_embeddings": True, "pad_token_id": 0}
_ALTERNATING = ["sliding_attention", "full_attention"]
# The last two of six layers share keys and values, and have wider MLPs.
GEMMA4 = _family(
    "gemma4_text",
    **_GEMMA4,
    num_hidden_layers=6,
    layer_types=_ALTERNATING * 3,
    num_kv_shared_layers=2,
    use_double_wide_mlp=True,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=VOCAB,
    final_logit_softcapping=4.0,
)
# Keys are values in layers without a window, which have fewer of them.
GEMMA4_UNIFIED = _family(
    "gemma4_unified_text",
    **_GEMMA4,
    num_hidden_layers=4,
    layer_types=_ALTERNATING * 2,
    attention_k_eq_v=True,
    num_global_key_value_heads=1,
    attention_bias=True,
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 4.0}
OLMO3 = _family(
    "olmo3", num_hidden_layers=4, head_dim=16, sliding_window=9, rope_theta=5e5, rope_scaling=YARN, attention_bias=True
)
MINISTRAL3 = _family(
    "ministral3",
    head_dim=16,
    sliding_window=9,
    rope_parameters=YARN | {"rope_theta": 1e6, "mscale": 1.0, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.3},
)
# Short and long factors of the rotated half of each head, and an original context that the golden rows stay within.
PHI3 = _family(
    "phi3",
    head_dim=16,
    hidden_size=64,
    sliding_window=9,
    pad_token_id=None,
    partial_rotary_factor=0.5,
    original_max_position_embeddings=96,
    rope_scaling={"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.5, 2.0, 4.0, 8.0]},
)
GLM4 = _family("glm4", head_dim=16, attention_bias=True, pad_token_id=None)
GRANITE4 = _family(
    "granitemoehybrid",
    num_local_experts=0,
    num_experts_per_tok=0,
    mamba_n_heads=4,
    layer_types=["attention", "attention"],
    position_embedding_type="rope",
    shared_intermediate_size=40,
    **_MULTIPLIERS,
)
GRANITE4_NOPE = GRANITE4 | {"position_embedding_type": "nope", "attention_bias": True, "tie_word_embeddings": True}
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION |= {"image_size": 28, "patch_size": 14}


def _wrapper(model_type: str, text: dict[str, Any], vision: str, **fields: Any) -> dict[str, Any]:
    """A config of a model that wraps a decoder of text."""
    return {"model_type": model_type, "text_config": text, "vision_config": _VISION | {"model_type": vision}, **fields}


GEMMA3_WRAPPED = _wrapper("gemma3", GEMMA3, "siglip_vision_model", mm_tokens_per_image=4, image_token_index=200)
MISTRAL3 = _wrapper("mistral3", MINISTRAL3, "pixtral", image_token_index=10, tie_word_embeddings=False)
QWEN3_5_WRAPPED = {"model_type": "qwen3_5", "text_config": QWEN3_5}
QWEN3_5_WRAPPED["vision_config"] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
QWEN3_5_WRAPPED["vision_config"] |= {"out_hidden_size": 32, "num_position_embeddings": 16}
GEMMA4_WRAPPED = _wrapper("gemma4", GEMMA4, "gemma4_vision", audio_config=None)
GEMMA4_UNIFIED_WRAPPED = {"model_type": "gemma4_unified", "text_config": GEMMA4_UNIFIED}
CONFIGS = LLAMAS | {
    "qwen2": QWEN2,
    "qwen2_window": QWEN2_WINDOW,
    "qwen3": QWEN3,
    "qwen3_5": QWEN3_5,
    "mistral": MISTRAL,
    "smollm3": SMOLLM3,
    "granite": GRANITE,
    "olmo2": OLMO2,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "gemma4": GEMMA4,
    "gemma4_unified": GEMMA4_UNIFIED,
    "olmo3": OLMO3,
    "ministral3": MINISTRAL3,
    "phi3": PHI3,
    "glm4": GLM4,
    "granite4": GRANITE4,
    "granite4_nope": GRANITE4_NOPE,
}
WRAPPERS = {
    "gemma4": GEMMA4_WRAPPED,
    "gemma4_unified": GEMMA4_UNIFIED_WRAPPED,
    "gemma3": GEMMA3_WRAPPED,
    "mistral3": MISTRAL3,
    "qwen3_5": QWEN3_5_WRAPPED,
}


def whole_spec(config: DecoderConfig, rank: int, alpha: float) -> LoraSpec:
    """An adapter on every projection that a decoder has."""
    return LoraSpec(rank, alpha, 0.0, tuple(dict.fromkeys(path.split(".")[-1] for path in projection_shapes(config))))


def tensor_shapes(fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint, as Hugging Face stores them.

    Of a Llama, written out here; of other families by rdjax's own table, which tests/parity checks.
    """
    if fields["model_type"] != "llama":
        return checkpoint_shapes(decoder_config_from_hf(fields, "tiny"))
    D, F, V = fields["hidden_size"], fields["intermediate_size"], fields["vocab_size"]
    H = fields.get("head_dim") or D // fields["num_attention_heads"]
    NH, KH = fields["num_attention_heads"] * H, fields["num_key_value_heads"] * H
    attention = {"q_proj": (NH, D), "k_proj": (KH, D), "v_proj": (KH, D), "o_proj": (D, NH)}
    mlp = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not fields["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    for layer in range(fields["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (D,)
        for room, projections, biased in (
            ("self_attn", attention, fields.get("attention_bias")),
            ("mlp", mlp, fields.get("mlp_bias")),
        ):
            for name, shape in projections.items():
                shapes[f"{prefix}.{room}.{name}.weight"] = shape
                if biased:
                    shapes[f"{prefix}.{room}.{name}.bias"] = shape[:1]
    return shapes


def random_tensors(fields: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Float32 weights large enough that attention is far from uniform, yet activations stay near 1.

    `RandomState` and not `default_rng`: its stream is frozen across numpy versions, and the golden files
    depend on it.
    """
    random = np.random.RandomState(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = random.standard_normal(shape)
        if name.endswith(".bias"):
            return 0.3 * noise
        if "norm" in name or "layer_scalar" in name:
            centred = fields["model_type"].startswith(("gemma2", "gemma3", "qwen3_5")) and "linear_attn" not in name
            return 0.3 * noise if centred else 1 + 0.3 * noise
        return noise if "embed_tokens" in name else noise * shape[-1] ** -0.5

    return {name: tensor(name, shape).astype(np.float32) for name, shape in tensor_shapes(fields).items()}


def write_tensors(folder: pathlib.Path, tensors: dict[str, np.ndarray], shards: int = 1) -> None:
    """Writes safetensors: one file, or several with an index (the tensors of a layer are spread over them)."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[shard::shards], file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_random_checkpoint(
    folder: pathlib.Path, fields: dict[str, Any], seed: int = 0, shards: int = 1
) -> pathlib.Path:
    """Makes `folder` a model folder of config.json and random weights; the same for the same seed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
    write_tensors(folder, random_tensors(fields, seed), shards)
    return folder


def single_device(config, dtype=jnp.float32) -> dict[str, Any]:
    """A tree of shardings, like the parameters, that puts all on the first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: sharding, abstract_params(config, dtype)[1])


def load_decoder(folder: pathlib.Path, dtype=jnp.float32) -> Decoder:
    """A checkpoint folder as a decoder, on the first device."""
    config = read_decoder_config(folder)
    graph, _ = abstract_params(config, dtype)
    return nnx.merge(graph, load_params(folder, config, dtype, single_device(config, dtype)))


def random_decoder(fields: dict[str, Any], seed: int = 0, dtype=jnp.float32) -> Decoder:
    with tempfile.TemporaryDirectory() as folder:
        return load_decoder(write_random_checkpoint(pathlib.Path(folder), fields, seed), dtype)


def random_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, VOCAB, shape).astype(np.int32)


def segments_of(lengths: list[int], T: int) -> np.ndarray:
    """Segment 1 on the first `lengths[b]` tokens of row b, then right padding."""
    return (np.arange(T) < np.array(lengths)[:, None]).astype(np.int32)


def pad_rows(rows: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Rows of tokens as one right-padded batch, and their lengths."""
    lengths = [len(row) for row in rows]
    tokens_BT = np.zeros((len(rows), max(lengths)), np.int32)
    for row, tokens in zip(tokens_BT, rows, strict=True):
        row[: len(tokens)] = tokens
    return tokens_BT, lengths


def causal_mask(segments_BT: jax.Array) -> jax.Array:
    """Which token may look at which, bool [B, T, T]: the earlier ones of its own segment.

    Segment 0 is padding; a padding token sees itself alone, so that its row stays finite.
    """
    T = segments_BT.shape[1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    real = (segments_BT > 0)[:, None, :]
    return (causal & same & real) | jnp.eye(T, dtype=bool)


def apply(decoder: Decoder, tokens_BT, lengths: list[int] | None = None, **options) -> Output:
    """The decoder on right-padded rows, with the inputs of the blocks at every position."""
    B, T = np.shape(tokens_BT)
    positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    mask_BTT = causal_mask(jnp.asarray(segments_of(lengths or [T] * B, T)))
    return decoder(jnp.asarray(tokens_BT), positions_BT, mask_BTT, inputs_at_BQ=positions_BT, **options)


def compiled(decoder: Decoder, function, *arguments):
    """`function(decoder, *arguments)`, compiled, as numpy arrays: without jit, each little step compiles alone."""
    graph, params = nnx.split(decoder)
    return jax.device_get(jax.jit(lambda params, *rest: function(nnx.merge(graph, params), *rest))(params, *arguments))


def forward(decoder: Decoder, tokens_BT, lengths: list[int] | None = None, **options) -> Output:
    """`apply`, compiled, as numpy arrays."""
    return compiled(decoder, lambda decoder: apply(decoder, tokens_BT, lengths, **options))


def write_tokenizer(folder: pathlib.Path, chat_template: str | None = None) -> pathlib.Path:
    """Adds a tokenizer to a model folder: one token a byte, BOS put first by its own call, no padding token."""
    folder.mkdir(parents=True, exist_ok=True)
    bytes_256 = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*bytes_256, BOS, EOS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocab[BOS])]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)
    if chat_template is not None:
        wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)
    return folder
