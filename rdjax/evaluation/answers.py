"""Lets systems answer prompts: the base or an adapter, with the rule in the prompt or without."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from rdjax.data.pairs import Pair, Prompts, make_prompts
from rdjax.errors import UserError
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter


@dataclasses.dataclass(frozen=True)
class System:
    """A way to answer: the base with an adapter, prompted with the rule or without."""

    adapter: Adapter
    with_rule: bool


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """How to answer: prompt template, length limit, choice of tokens, rows a batch, and the scale of all adapters."""

    template: str
    max_length: int
    decoding: Decoding
    batch_size: int
    scale: float


@dataclasses.dataclass(frozen=True)
class Answers:
    """The responses of one system to the rows of a split."""

    ids: list[list[int]]
    ended: list[bool]
    texts: list[str]


def length_limit(model: LanguageModel, max_length: int) -> tuple[int, str]:
    """The tokens that a sequence may have, and what sets that limit."""
    limits = (max_length, "task.max_length"), (model.config.max_positions, "the model's max_position_embeddings")
    return min(limits)


def prompts_of(model: LanguageModel, rows: Iterable[Mapping[str, str]], options: EvalOptions) -> list[Prompts]:
    """Both prompts of every row; one that leaves no room for an answer is an error."""
    made = [make_prompts(options.template, model.tokenizer, row) for row in rows]
    limit, name = length_limit(model, options.max_length)
    for prompts in made:
        length = max(len(prompts.teacher_ids), len(prompts.student_ids)) + options.decoding.max_new_tokens
        if length > limit:
            raise UserError(
                f"{prompts.where}: prompt and eval.max_new_tokens take {length} tokens, over {name} = {limit}; "
                "nothing is cut: shorten the row or raise the limit"
            )
    return made


def answer(
    model: LanguageModel,
    system: System,
    prompts: Sequence[Prompts],
    options: EvalOptions,
    on_batch: Callable[[int], None] = lambda rows: None,
    seed: int = 0,
) -> Answers:
    """What a system answers to each prompt."""
    ids = [prompt.teacher_ids if system.with_rule else prompt.student_ids for prompt in prompts]
    made = generate(
        model,
        system.adapter,
        options.scale,
        ids,
        options.decoding,
        options.batch_size,
        seed,
        on_batch,
    )
    texts = model.tokenizer.batch_decode([new for new, _ in made], skip_special_tokens=True)
    return Answers([new for new, _ in made], [ended for _, ended in made], texts)


def answered_pairs(prompts: Sequence[Prompts], responses: Answers) -> list[Pair]:
    """Prompts with the responses given to them."""
    triples = zip(prompts, responses.ids, responses.ended, strict=True)
    return [Pair(prompt, tuple(ids), ended) for prompt, ids, ended in triples]
