"""Probes the model on fresh rules during training: the share of questions that it answers without a fault."""

import functools
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import config_dict
from transformers import PreTrainedTokenizerFast

from rdjax.data.rules.arithmetic import VALUES, WORDINGS, Rule
from rdjax.rulebook.batches import Packed, tokenise
from rdjax.rulebook.documents import (
    HEAD,
    Document,
    drill,
    random_constant,
    random_symbol,
    refusal_document,
    sentiment_document,
)
from rdjax.rulebook.model import forward

PROBE_DOCUMENTS, PROBE_QUESTIONS = 12, 6  # rules of a group, and questions under each


def probe_documents(seed: int) -> dict[str, list[Document]]:
    """Generates fresh rules of all three tasks, by group.

    Arithmetic has a group for each value, with short and with long operands; the rule stands alone in the prompt.
    """
    rng = random.Random(f"probe-{seed}")
    groups = {
        f"{value}_{name}": [_arithmetic_probe(rng, value, low, high) for _ in range(PROBE_DOCUMENTS)]
        for value in VALUES
        for name, low, high in (("short", 10, 99), ("long", 121, 1996))
    }
    groups["sentiment"] = [sentiment_document(rng, PROBE_QUESTIONS) for _ in range(PROBE_DOCUMENTS)]
    groups["refusal"] = [refusal_document(rng, PROBE_QUESTIONS) for _ in range(PROBE_DOCUMENTS)]
    for name, named in (("named", 1.0), ("member", 0.0)):
        groups[f"drill_{name}"] = [drill(rng, PROBE_QUESTIONS, named) for _ in range(2 * PROBE_DOCUMENTS)]
    return groups


def _arithmetic_probe(rng: random.Random, value: str, low: int, high: int) -> Document:
    """Generates one arithmetic rule and its questions on operands from `low` to `high`, without negative answers."""
    rule = Rule(value, random_constant(rng, value), random_symbol(rng), rng.randrange(len(WORDINGS)))
    rows = [rule.row(rng.randint(low, high), rng.randint(low, high)) for _ in range(PROBE_QUESTIONS)]
    questions = [(row["input"], row["output"]) for row in rows if not row["output"].startswith("-")]
    return Document(HEAD + rule.text(), questions)


@functools.partial(jax.jit, static_argnames=("graph",))
def correct_tokens(graph: nnx.GraphDef, params: dict[str, Any], batch: Packed) -> jax.Array:
    """Tells where the most likely next token is the target, bool [B, T]."""
    return jnp.argmax(forward(graph, params, batch), axis=-1) == batch.targets_BT


def probe(
    graph: nnx.GraphDef,
    params: dict[str, Any],
    config: config_dict.ConfigDict,
    tokenizer: PreTrainedTokenizerFast,
) -> dict[str, float]:
    """Computes the share of questions answered without a fault, for each group of `probe_documents`."""
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
