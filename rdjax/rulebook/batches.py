"""Turns rule documents into packed batches: the curriculum of a step, tokenisation, and the layout of a row."""

import random
from typing import NamedTuple

import numpy as np
from ml_collections import config_dict
from transformers import PreTrainedTokenizerFast

from rdjax.data.templates import ALPACA_INPUT, ALPACA_RESPONSE
from rdjax.rulebook.documents import Document, drill, matching_drill, random_document, random_expressions


class Packed(NamedTuple):
    """Holds tokenised documents, padded to one length; a single row lacks the axis B.

    Attributes:
      tokens_BT, targets_BT: each token, and the one that follows it in its question.
      positions_BT: positions; those of every question continue from the end of the prefix.
      segments_BT: 0 padding, 1 prefix, 2 and above the questions.
      weights_BT: loss weight of each target.
    """

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray
    weights_BT: np.ndarray


def pack(
    prefix_ids: list[int], question_ids: list[tuple[list[int], list[int]]], length: int, eos: int, prefix_weight: float
) -> Packed:
    """Lays out one document in a row of `length` tokens; questions that do not fit whole are left out."""
    row = Packed(*(np.zeros(length, np.int32) for _ in range(4)), np.zeros(length, np.float32))
    prefix_end = len(prefix_ids)
    row.tokens_BT[:prefix_end] = prefix_ids
    row.targets_BT[: prefix_end - 1] = prefix_ids[1:]
    row.positions_BT[:prefix_end] = np.arange(prefix_end)
    row.segments_BT[:prefix_end] = 1
    row.weights_BT[: prefix_end - 1] = prefix_weight
    start = prefix_end
    for segment, (question, answer) in enumerate(question_ids, start=2):
        ids, stop = question + answer, start + len(question) + len(answer)
        if stop > length:
            break
        row.tokens_BT[start:stop] = ids
        row.targets_BT[start:stop] = [*ids[1:], eos]
        row.positions_BT[start:stop] = np.arange(prefix_end, prefix_end + len(ids))
        row.segments_BT[start:stop] = segment
        row.weights_BT[start + len(question) - 1 : stop] = 1.0
        start = stop
    return row


def tokenise(
    tokenizer: PreTrainedTokenizerFast, documents: list[Document], length: int, prefix_weight: float
) -> Packed:
    """Tokenises documents and packs them, one a row, into a batch [B, T]."""
    prefixes = tokenizer([document.prefix for document in documents])["input_ids"]
    pairs = [pair for document in documents for pair in document.questions]
    questions = tokenizer([ALPACA_INPUT + q + ALPACA_RESPONSE for q, _ in pairs], add_special_tokens=False)["input_ids"]
    answers = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
    all_ids = iter(zip(questions, answers, strict=True))
    rows = []
    for document, prefix in zip(documents, prefixes, strict=True):
        question_ids = [next(all_ids) for _ in document.questions]
        rows.append(pack(prefix, question_ids, length, tokenizer.eos_token_id, prefix_weight))
    return Packed(*(np.stack(column) for column in zip(*rows, strict=True)))


def make_documents(config: config_dict.ConfigDict, step: int) -> list[Document]:
    """Generates the documents of a training step; they depend only on the seed and the step.

    The curriculum begins with drills alone. Then come expressions and a growing share of rules, and drills remain a
    small share.
    """
    rng = random.Random(f"{config.seed}-{step}")
    data = config.data
    # More questions than fit: `pack` leaves out the rest.
    questions = data.length // 11
    if step < data.drills_alone:
        named = 0.8 if step >= data.named_from else 0.0  # the other drills are over arbitrary words
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
    """Returns the packed documents of a training step."""
    documents = make_documents(config, step)
    return tokenise(tokenizer, documents, config.data.length, config.data.prefix_weight)
