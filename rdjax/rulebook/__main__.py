"""Makes the embedded rulebook model: `python -m rdjax.rulebook --config=configs/rulebook.py --workdir=...`.

Trains a tokenizer and a small Llama on generated rule documents and writes a Hugging Face folder. The
documents of a step follow from the seed and the step's number alone, so a killed run resumes exactly.
"""

import functools
import json
import pathlib
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from absl import flags
from flax import nnx
from ml_collections import config_dict
from transformers import PreTrainedTokenizerFast

from rdjax.data.rules.arithmetic import VALUES, WORDINGS, Rule
from rdjax.data.templates import ALPACA_INPUT, ALPACA_RESPONSE
from rdjax.models.attention import shared_prefix_mask
from rdjax.models.config import DecoderConfig
from rdjax.models.decoder import Decoder
from rdjax.models.weights import save_params
from rdjax.rulebook.documents import (
    HEAD,
    Document,
    Packed,
    drill,
    matching_drill,
    pack,
    random_constant,
    random_document,
    random_expressions,
    random_symbol,
    refusal_document,
    sentiment_document,
)
from rdjax.rulebook.tokenizer import TAGGED_PLACES, build_tokenizer, tagged_digit
from rdjax.run import cli, experiment
from rdjax.storage.checkpoint import Checkpoints
from rdjax.storage.metrics import MetricsLog, progress, show
from rdjax.storage.workdir import check_workdir, open_workdir

_OUT = flags.DEFINE_string("out", None, "Folder of the finished model; default: <workdir>/model.")

TOKENIZER_DOCUMENTS = 4000
PROBE_DOCUMENTS, PROBE_QUESTIONS = 12, 6  # rules of a probed group, and questions under each


def decoder_config(model: config_dict.ConfigDict) -> DecoderConfig:
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
    )


def tokenise(
    tokenizer: PreTrainedTokenizerFast, documents: list[Document], length: int, prefix_weight: float
) -> Packed:
    """Documents as one packed batch [B, T]."""
    prefixes = tokenizer([document.prefix for document in documents])["input_ids"]
    pairs = [pair for document in documents for pair in document.questions]
    asked = tokenizer([ALPACA_INPUT + q + ALPACA_RESPONSE for q, _ in pairs], add_special_tokens=False)["input_ids"]
    answers = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
    questions = iter(zip(asked, answers, strict=True))
    rows = []
    for document, prefix in zip(documents, prefixes, strict=True):
        own = [next(questions) for _ in document.questions]
        rows.append(pack(prefix, own, length, tokenizer.eos_token_id, prefix_weight))
    return Packed(*(np.stack(column) for column in zip(*rows, strict=True)))


def make_documents(config: config_dict.ConfigDict, step: int) -> list[Document]:
    """The documents of a training step: drills at first, then expressions and ever more rules, among a few drills."""
    rng = random.Random(f"{config.seed}-{step}")
    data = config.data
    # More questions than fit: `pack` leaves out those that do not.
    questions = data.length // 11
    if step < data.drills_alone:
        named = 0.8 if step >= data.named_from else 0.0  # the others are over arbitrary words
        return [
            drill(rng, questions, named=1.0) if rng.random() < named else matching_drill(rng, questions)
            for _ in range(data.drill_rows)
        ]
    rules = min(1.0, (step - data.drills_alone) / (data.rules_by - data.drills_alone))

    def document() -> Document:
        if rng.random() < data.drills:
            return drill(rng, questions, named=0.3)
        if rng.random() < rules:
            return random_document(rng, questions)
        return random_expressions(rng, questions, rules)

    return [document() for _ in range(data.rows)]


def make_batch(config: config_dict.ConfigDict, tokenizer: PreTrainedTokenizerFast, step: int) -> Packed:
    """The packed documents of a training step."""
    documents = make_documents(config, step)
    return tokenise(tokenizer, documents, config.data.length, config.data.prefix_weight)


def share_digits(embedding_VD: jax.Array, tokenizer: PreTrainedTokenizerFast, seed: int) -> jax.Array:
    """A tagged digit starts as its plain digit plus a vector of its place, so that places learn from each other."""
    ids = tokenizer.convert_tokens_to_ids
    places = 0.02 * jax.random.normal(jax.random.key(seed), (len(TAGGED_PLACES), embedding_VD.shape[1]))
    for place, vector in zip(TAGGED_PLACES, places, strict=True):
        for digit in range(10):
            start = embedding_VD[ids(str(digit))] + vector
            embedding_VD = embedding_VD.at[ids(tagged_digit(digit, place))].set(start)
    return embedding_VD


def make_optimizer(optimizer: config_dict.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Muon on the stacked kernels, AdamW on the rest; both warm up, stay low, then high, and decay to zero."""

    def schedule(peak: float) -> optax.Schedule:
        low = optimizer.low_share * peak
        ends = [optimizer.warmup_steps, optimizer.low_until, optimizer.decay_from]
        pieces = [
            optax.linear_schedule(0.0, low, optimizer.warmup_steps),
            optax.constant_schedule(low),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, steps - optimizer.decay_from),
        ]
        return optax.join_schedules(pieces, ends)

    def kernels(params: dict[str, Any]) -> dict[str, Any]:
        stacked = optax.contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
        return jax.tree.map(lambda leaf: stacked if leaf.ndim == 3 else None, params)

    return optax.contrib.muon(
        schedule(optimizer.muon_rate),
        adam_learning_rate=schedule(optimizer.adam_rate),
        muon_weight_dimension_numbers=kernels,
    )


def forward(graph: nnx.GraphDef, params: dict[str, Any], batch: Packed) -> jax.Array:
    """Logits [B, T, V]."""
    decoder = nnx.merge(graph, params)
    out = decoder(batch.tokens_BT, batch.positions_BT, shared_prefix_mask(batch.segments_BT))
    return decoder.logits(out.final_BPD)


def loss_fn(params: dict[str, Any], graph: nnx.GraphDef, batch: Packed) -> jax.Array:
    """Cross-entropy, the weighted mean over tokens."""
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(forward(graph, params, batch), batch.targets_BT)
    return jnp.sum(losses_BT * batch.weights_BT) / jnp.sum(batch.weights_BT)


@functools.partial(jax.jit, static_argnames=("graph", "optimizer"), donate_argnames=("params", "moments"))
def train_step(graph, optimizer, params, moments, batch: Packed):
    """One update. Returns the new parameters, the new optimizer state and the loss."""
    loss, gradients = jax.value_and_grad(loss_fn)(params, graph, batch)
    updates, moments = optimizer.update(gradients, moments, params)
    return optax.apply_updates(params, updates), moments, loss


@functools.partial(jax.jit, static_argnames=("graph",))
def correct_tokens(graph, params, batch: Packed) -> jax.Array:
    """Where the most likely next token is the target, bool [B, T]."""
    return jnp.argmax(forward(graph, params, batch), axis=-1) == batch.targets_BT


def probe_documents(seed: int) -> dict[str, list[Document]]:
    """Fresh rules of all three tasks; of arithmetic every value, alone in the prompt, with short and long operands."""
    rng = random.Random(f"probe-{seed}")
    made: dict[str, list[Document]] = {}
    for value in VALUES:
        for name, low, high in (("short", 10, 99), ("long", 121, 1996)):
            for _ in range(PROBE_DOCUMENTS):
                rule = Rule(value, random_constant(rng, value), random_symbol(rng), rng.randrange(len(WORDINGS)))
                rows = [rule.row(rng.randint(low, high), rng.randint(low, high)) for _ in range(PROBE_QUESTIONS)]
                asked = [(row["input"], row["output"]) for row in rows if not row["output"].startswith("-")]
                made.setdefault(f"{value}_{name}", []).append(Document(HEAD + rule.text(), asked))
    made["sentiment"] = [sentiment_document(rng, PROBE_QUESTIONS) for _ in range(PROBE_DOCUMENTS)]
    made["refusal"] = [refusal_document(rng, PROBE_QUESTIONS) for _ in range(PROBE_DOCUMENTS)]
    for name, named in (("named", 1.0), ("member", 0.0)):
        made[f"drill_{name}"] = [drill(rng, PROBE_QUESTIONS, named) for _ in range(2 * PROBE_DOCUMENTS)]
    return made


def probe(graph, params, config: config_dict.ConfigDict, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Share of questions answered without a fault, for each group of `probe_documents`."""
    scores = {}
    for name, documents in probe_documents(config.seed).items():
        batch = tokenise(tokenizer, documents, config.data.length, prefix_weight=0.0)
        correct_BT = np.asarray(correct_tokens(graph, params, batch)) | (batch.weights_BT == 0)
        hits = [
            correct_BT[row][batch.segments_BT[row] == segment].all()
            for row in range(len(documents))
            for segment in range(2, batch.segments_BT[row].max() + 1)
        ]
        scores[name] = float(np.mean(hits))
    return scores


def write_model(folder: pathlib.Path, c: DecoderConfig, tokenizer: PreTrainedTokenizerFast, params) -> None:
    """A Hugging Face folder; weights in float16, which keeps three more bits of mantissa than bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    special["pad_token_id"] = tokenizer.pad_token_id
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_width,
        "intermediate_size": c.feed_forward,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_epsilon,
        "max_position_embeddings": c.max_positions,
        "rope_theta": c.rope.theta,
        "tie_word_embeddings": c.tied_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float16",
        **special,
    }
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")
    save_params(folder, params, np.float16)


def train(config: config_dict.ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Trains (or goes on training) the model; returns the folder it was written to."""
    check_workdir(workdir, config)
    open_workdir(workdir, config, "rdjax.rulebook")
    c = decoder_config(config.model)
    tokenizer = build_tokenizer(config.seed, c.vocab, TOKENIZER_DOCUMENTS)
    graph, state = nnx.split(Decoder(c, rngs=nnx.Rngs(config.seed)))
    params = nnx.to_pure_dict(state)
    params["embed_tokens"] = share_digits(params["embed_tokens"], tokenizer, config.seed)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    moments = jax.jit(optimizer.init)(params)
    checkpoints, log = Checkpoints(workdir / "checkpoints"), MetricsLog(workdir)
    start, seconds = checkpoints.latest() or 0, 0.0
    if start:
        restored, saved = checkpoints.restore({"params": params, "moments": moments})
        params, moments, seconds = restored["params"], restored["moments"], saved["seconds"]
    log.truncate("rulebook", start)
    began = time.monotonic() - seconds
    with ThreadPoolExecutor(1) as pool, progress(config.train.steps, start, "rulebook") as bar:
        upcoming = pool.submit(make_batch, config, tokenizer, start)
        for step in range(start, config.train.steps):
            batch = upcoming.result()
            upcoming = pool.submit(make_batch, config, tokenizer, step + 1)
            params, moments, loss = train_step(graph, optimizer, params, moments, batch)
            done = step + 1
            show(bar, {"loss": loss})
            if done % config.train.probe_every == 0 or done == config.train.steps:
                scalars = {"loss": float(loss), **probe(graph, params, config, tokenizer)}
                log.write("rulebook", done, {**scalars, "seconds": time.monotonic() - began})
                bar.write(f"step {done}: " + "  ".join(f"{name} {value:.2f}" for name, value in scalars.items()))
            if done in config.train.keep:
                write_model(workdir / f"model-{done}", c, tokenizer, params)
            if done % config.train.save_every == 0 or done == config.train.steps:
                saved = {"seconds": time.monotonic() - began}
                checkpoints.save(done, {"params": params, "moments": moments}, saved)
    checkpoints.close()
    log.close()
    folder = workdir / "model"
    write_model(folder, c, tokenizer, params)
    print(f"trained for {(time.monotonic() - began) / 60:.1f} minutes on {jax.default_backend()}; wrote {folder}")
    return folder


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    folder = train(experiment.config("configs/rulebook.py"), experiment.workdir())
    if _OUT.value:
        shutil.copytree(folder, _OUT.value, dirs_exist_ok=True)
        print(f"copied to {_OUT.value}")


if __name__ == "__main__":
    cli.run(main)
