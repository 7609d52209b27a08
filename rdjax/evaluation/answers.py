"""Generates the answers of systems: the base or an adapter, with the rule in the prompt or without."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rdjax.data.pairs import Pair, Prompts, make_prompts
from rdjax.data.templates import Template
from rdjax.errors import UserError
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.load import LanguageModel, check_embedded
from rdjax.models.lora import Adapter


@dataclasses.dataclass(frozen=True)
class System:
    """Describes a system to evaluate: the base with an adapter, prompted with the rule or without."""

    adapter: Adapter
    with_rule: bool


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Describes how systems answer.

    Attributes:
      template: of the prompts.
      max_length: tokens of a prompt with its answer, at most.
      decoding: how tokens are chosen.
      batch_size: prompts that are answered at once.
      scale: of all adapters.
    """

    template: Template
    max_length: int
    decoding: Decoding
    batch_size: int
    scale: float


class Answer(NamedTuple):
    """Holds a response: its tokens, whether it reached an end of sequence, and its text."""

    ids: Sequence[int]
    ended: bool
    text: str


def length_limit(model: LanguageModel, max_length: int) -> tuple[int, str]:
    """Returns the most tokens that a sequence may have, and the name of the field that sets this limit."""
    limits = (max_length, "task.max_length"), (model.config.max_positions, "the model's max_position_embeddings")
    return min(limits)


def prompts_of(model: LanguageModel, rows: Iterable[Mapping[str, str]], options: EvalOptions) -> list[Prompts]:
    """Renders every row with the rule and without.

    Raises:
      UserError: a prompt leaves too few tokens for an answer.
    """
    prompts = [make_prompts(options.template, row) for row in rows]
    limit, name = length_limit(model, options.max_length)
    for prompt in prompts:
        check_embedded(model, (*prompt.teacher_ids, *prompt.student_ids), prompt.where)
        length = max(len(prompt.teacher_ids), len(prompt.student_ids)) + options.decoding.max_new_tokens
        if length > limit:
            raise UserError(
                f"{prompt.where}: prompt and eval.max_new_tokens take {length} tokens, over {name} = {limit}; "
                "nothing is cut: shorten the row or raise the limit"
            )
    return prompts


def answer(
    model: LanguageModel,
    system: System,
    prompts: Sequence[Prompts],
    options: EvalOptions,
    on_batch: Callable[[int], None] = lambda rows: None,
    seed: int = 0,
) -> list[Answer]:
    """Generates a system's response to each prompt.

    Args:
      on_batch: called with the number of prompts answered since its last call.
      seed: of drawn tokens.
    """
    prompt_ids = [prompt.teacher_ids if system.with_rule else prompt.student_ids for prompt in prompts]
    responses = generate(
        model,
        system.adapter,
        options.scale,
        prompt_ids,
        options.decoding,
        options.batch_size,
        seed,
        on_batch,
    )
    texts = model.tokenizer.batch_decode([ids for ids, _ in responses], skip_special_tokens=True)
    # A chat template may write blanks around an answer, which the student learns and nobody else means.
    texts = [text.removeprefix(options.template.lead).removesuffix(options.template.trail) for text in texts]
    return [Answer(ids, ended, text) for (ids, ended), text in zip(responses, texts, strict=True)]


def answered_pairs(prompts: Sequence[Prompts], answers: Sequence[Answer]) -> list[Pair]:
    """Combines each prompt with its response."""
    return [Pair(prompt, tuple(answer.ids), answer.ended) for prompt, answer in zip(prompts, answers, strict=True)]


def answer_record(row: Mapping[str, str], answer: Answer) -> dict[str, Any]:
    """Returns what files of answers hold of the answer to a row."""
    return {
        "input": row["input"],
        "gold": row["output"],
        "response": answer.text,
        "ids": list(answer.ids),
        "ended": answer.ended,
    }


def recorded_answers(records: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Returns the answers of what `answer_record` made."""
    return [Answer(record["ids"], record["ended"], record["response"]) for record in records]
