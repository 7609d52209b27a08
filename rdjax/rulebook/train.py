"""Trains the rulebook model on generated rule documents; a killed run resumes exactly."""

import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx
from ml_collections import config_dict
from transformers import PreTrainedTokenizerFast

from rdjax.data.batches import fetch_ahead
from rdjax.distillation.stage import is_due
from rdjax.models.config import DecoderConfig
from rdjax.rulebook.batches import Packed, make_batch
from rdjax.rulebook.model import decoder_config, forward, init_model, write_model
from rdjax.rulebook.probes import probe
from rdjax.rulebook.tokenizer import build_tokenizer
from rdjax.storage.checkpoint import Checkpoints
from rdjax.storage.metrics import MetricsLog, advance, progress_bar
from rdjax.storage.workdir import check_workdir, open_workdir

TOKENIZER_DOCUMENTS = 4000


def make_schedule(optimizer: config_dict.ConfigDict, steps: int, peak: float) -> optax.Schedule:
    """Returns a rate that warms up, stays low, then at the peak, and decays linearly to zero at the last step."""
    low = optimizer.low_share * peak
    pieces = [
        optax.linear_schedule(0.0, low, optimizer.warmup_steps),
        optax.constant_schedule(low),
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, 0.0, steps - optimizer.decay_from),
    ]
    return optax.join_schedules(pieces, [optimizer.warmup_steps, optimizer.low_until, optimizer.decay_from])


def make_optimizer(optimizer: config_dict.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Returns Muon for the stacked kernels and AdamW for all other parameters."""

    def kernels(params: dict[str, Any]) -> dict[str, Any]:
        stacked = optax.contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
        return jax.tree.map(lambda leaf: stacked if leaf.ndim == 3 else None, params)

    return optax.contrib.muon(
        make_schedule(optimizer, steps, optimizer.muon_rate),
        adam_learning_rate=make_schedule(optimizer, steps, optimizer.adam_rate),
        muon_weight_dimension_numbers=kernels,
    )


def loss_fn(params: dict[str, Any], graph: nnx.GraphDef, batch: Packed) -> jax.Array:
    """Computes the cross-entropy as a weighted mean over tokens."""
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(forward(graph, params, batch), batch.targets_BT)
    return jnp.sum(losses_BT * batch.weights_BT) / jnp.sum(batch.weights_BT)


@functools.partial(jax.jit, static_argnames=("graph", "optimizer"), donate_argnames=("params", "moments"))
def train_step(graph, optimizer, params, moments, batch: Packed):
    """Updates the model once; returns the new parameters, the new optimizer state and the loss."""
    loss, gradients = jax.value_and_grad(loss_fn)(params, graph, batch)
    updates, moments = optimizer.update(gradients, moments, params)
    return optax.apply_updates(params, updates), moments, loss


@dataclasses.dataclass(frozen=True)
class Setup:
    """Holds what stays the same during a training run."""

    config: config_dict.ConfigDict
    decoder: DecoderConfig
    tokenizer: PreTrainedTokenizerFast
    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation


def prepare(config: config_dict.ConfigDict) -> tuple[Setup, dict[str, Any]]:
    """Trains the tokenizer and returns the setup and the first state {"params", "moments"}."""
    decoder = decoder_config(config.model)
    tokenizer = build_tokenizer(config.seed, decoder.vocab, TOKENIZER_DOCUMENTS)
    graph, params = init_model(decoder, tokenizer, config.seed)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    setup = Setup(config, decoder, tokenizer, graph, optimizer)
    return setup, {"params": params, "moments": jax.jit(optimizer.init)(params)}


def probe_text(step: int, scalars: dict[str, float]) -> str:
    """Formats the loss and the scores of a probe as one line."""
    return f"step {step}: " + "  ".join(f"{name} {value:.2f}" for name, value in scalars.items())


def train(config: config_dict.ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Trains the model, or resumes its training; returns the folder that the model was written to."""
    check_workdir(workdir, config)
    open_workdir(workdir, config, "rdjax.rulebook")
    setup, state = prepare(config)
    checkpoints, log = Checkpoints(workdir / "checkpoints"), MetricsLog(workdir)
    start, seconds = 0, 0.0
    if found := checkpoints.restore_newest(state):
        start, state, seconds = found.step, found.state, found.progress["seconds"]
    log.truncate("rulebook", start)
    began, steps = time.monotonic() - seconds, config.train.steps
    batches = fetch_ahead(functools.partial(make_batch, config, setup.tokenizer), range(start, steps))
    with progress_bar(steps, start, "rulebook") as bar:
        for done, batch in enumerate(batches, start=start + 1):
            params, moments, loss = train_step(setup.graph, setup.optimizer, **state, batch=batch)
            state = {"params": params, "moments": moments}
            advance(bar, {"loss": loss})
            if is_due(config.train.probe_every, done, done == steps):
                scalars = {"loss": float(loss), **probe(setup.graph, params, config, setup.tokenizer)}
                log.write("rulebook", done, {**scalars, "seconds": time.monotonic() - began})
                bar.write(probe_text(done, scalars))
            if done in config.train.keep:
                write_model(workdir / f"model-{done}", setup.decoder, setup.tokenizer, params)
            if is_due(config.train.save_every, done, done == steps):
                checkpoints.save(done, state, {"seconds": time.monotonic() - began})
    checkpoints.close()
    log.close()
    folder = workdir / "model"
    write_model(folder, setup.decoder, setup.tokenizer, state["params"])
    print(f"trained for {(time.monotonic() - began) / 60:.1f} minutes on {jax.default_backend()}; wrote {folder}")
    return folder
