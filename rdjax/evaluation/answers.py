"""Generates the answers of systems: the base or an adapter, with the rule in the prompt or without."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

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


@dataclasses.dataclass(frozen=True)
class Answers:
    """Holds the responses of one system to the rows of a split.

    Attributes:
      ids: the tokens of each response.
      ended: whether each response reached an end of sequence.
      texts: the responses, decoded.
    """

    ids: list[list[int]]
    ended: list[bool]
    texts: list[str]


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
) -> Answers:
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
    ids, ended = [ids for ids, _ in responses], [ended for _, ended in responses]
    return Answers(ids, ended, model.tokenizer.batch_decode(ids, skip_special_tokens=True))


def answered_pairs(prompts: Sequence[Prompts], answers: Answers) -> list[Pair]:
    """Combines each prompt with its response."""
    triples = zip(prompts, answers.ids, answers.ended, strict=True)
    return [Pair(prompt, tuple(ids), ended) for prompt, ids, ended in triples]
