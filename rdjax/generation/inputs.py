"""Lets a model write inputs: the user's turn of a chat, or, without a chat template, the next line of a list."""

import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rdjax.data.chat import render_chat, with_rule
from rdjax.data.pairs import encode
from rdjax.data.templates import Template, join_instruction
from rdjax.errors import UserError
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.load import LanguageModel, ended_by
from rdjax.models.lora import Adapter

MARK = "QUESTION"  # stands where the model begins to write
EXAMPLES = 3  # inputs of the user's that a prompt shows
ROUND = 32  # prompts at once
LEAST_ROUNDS = 3  # it gives up after these if nothing was usable
MOST_DRAWS = 8  # the model gives up after this many times the inputs that are wanted
NEAR = 0.7  # texts that have this share of their words in common are near duplicates
LEAST_WORDS = 3
# Thai to Burmese, Khmer, and Chinese and Japanese are written without spaces: there a character counts as a word.
WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{WITHOUT_SPACES}]|[^\W{WITHOUT_SPACES}]+")


class Rejected(NamedTuple):
    """Holds a text that is no input, and why."""

    text: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Writer:
    """Describes how inputs are written.

    Attributes:
      adapter, scale: added to the base.
      template: of the prompts.
      temperature: of the draws.
      max_tokens: of an input.
      batch_size: prompts at once.
      seed: of the draws.
    """

    adapter: Adapter
    scale: float
    template: Template
    temperature: float
    max_tokens: int
    batch_size: int
    seed: int


def write_inputs(
    model: LanguageModel,
    writer: Writer,
    rule: str,
    examples: Sequence[str],
    taken: Sequence[str],
    count: int,
    on_batch: Callable[[int], None] = lambda accepted: None,
) -> tuple[list[str], list[Rejected]]:
    """Lets the model write inputs until there are `count`, or until it has drawn `MOST_DRAWS` times as many.

    Args:
      rule: the system message; empty: none, and the inputs are about anything.
      examples: inputs of the user's; more of their kind are written.
      taken: inputs that new ones must differ from.
      on_batch: called with the number of inputs accepted since its last call.

    Raises:
      UserError: a model without a chat template has no examples to continue.
    """
    rng = random.Random(f"inputs-{writer.seed}-{bool(rule)}")
    accepted: list[str] = []
    rejected: list[Rejected] = []
    for number in range(max(-(-count * MOST_DRAWS // ROUND), LEAST_ROUNDS)):
        before = len(accepted)
        texts = draw_round(model, writer, rule, examples, rng)
        for text, ended in texts:
            reason = why_rejected(text, ended, [*taken, *accepted], rule)
            if reason:
                rejected.append(Rejected(text, reason))
            elif len(accepted) < count:
                accepted.append(text)
        on_batch(len(accepted) - before)
        if len(accepted) == count or (number + 1 == LEAST_ROUNDS and not accepted):
            break
    return accepted, rejected


def draw_round(
    model: LanguageModel, writer: Writer, rule: str, examples: Sequence[str], rng: random.Random
) -> list[tuple[str, bool]]:
    """Draws `ROUND` texts; returns each with whether it came to its end."""
    chat = writer.template.name == "chat"
    starts, stop = [], "\n"
    for number in range(ROUND):
        shown = rng.sample(list(examples), min(EXAMPLES, len(examples)))
        if not chat:
            starts.append(list_of_lines(shown))
            continue
        start, stop = user_turn(writer.template, rule, shown)
        # Small models answer a system message with what users ask anywhere; asked for a question, they keep to it.
        starts.append(question_about(writer.template, rule, shown) if rule and number % 2 else start)
    prompts = [encode(writer.template, start)[0] for start in starts]
    if chat:
        stop_ids = writer.template.tokenizer(stop, add_special_tokens=False)["input_ids"]
        model = ended_by(model, stop_ids[0])
    decoding = Decoding(writer.max_tokens, temperature=writer.temperature, top_p=0.95)
    drawn = generate(model, writer.adapter, writer.scale, prompts, decoding, writer.batch_size, rng.randrange(2**31))
    texts = []
    for ids, ended in drawn:
        text, found, _ = model.tokenizer.decode(ids, skip_special_tokens=True).partition(stop)
        texts.append((" ".join(text.split()), bool(ended or found)))
    return texts


def can_write(template: Template) -> bool:
    """Tells whether a model can write the user's turn: it has a chat template, which marks the end of it."""
    if template.name != "chat":
        return False
    try:
        user_turn(template, "", ())
    except UserError:
        return False
    return True


def user_turn(template: Template, rule: str, examples: Sequence[str]) -> tuple[str, str]:
    """Renders a chat up to the beginning of the user's message; returns it with what the template writes behind one.

    Raises:
      UserError: the template changes the message.
    """
    listed = "\n".join(f"- {example}" for example in examples)
    system = join_instruction(rule, f"What users ask here, for example:\n{listed}" if examples else "")
    text = render_chat(template, with_rule(template, [{"role": "user", "content": MARK}], system), generate=False)
    start, found, rest = text.rpartition(MARK)
    stop = rest.strip()[:40].split("\n")[0]
    if not found or not stop:
        raise UserError(
            "config.task.inputs = written: the chat template marks no end of a user's message; "
            "give inputs in train.jsonl"
        )
    return start, stop


def question_about(template: Template, rule: str, examples: Sequence[str]) -> str:
    """Renders a chat in which the model is asked for a question about the rule."""
    listed = "".join(f"\n- {example}" for example in examples)
    request = f"Here is a text:\n\n{rule}\n\nWrite one short question that somebody could ask about it."
    return render_chat(template, [{"role": "user", "content": request + (f" Such as:{listed}" if listed else "")}])


def list_of_lines(examples: Sequence[str]) -> str:
    """Returns the beginning of a list that a model without a chat template continues by one line.

    Raises:
      UserError: there are no examples.
    """
    if not examples:
        raise UserError(
            "config.task.inputs = written: without a chat template the model can only continue inputs of yours: "
            "give a few in train.jsonl, or take an instruction-tuned model with config.task.template = chat"
        )
    return "".join(f"- {' '.join(example.split())}\n" for example in examples) + "-"


def why_rejected(text: str, ended: bool, taken: Sequence[str], rule: str) -> str:
    """Returns why a text is no input: "" for one that is.

    Args:
      taken: inputs that there are already.
    """
    words = words_of(text)
    if not words:
        return "empty"
    if not ended:
        return "not ended"
    if len(words) < LEAST_WORDS or "\ufffd" in text or len(set(words)) < len(words) / 3:
        return "no sentence"
    if rule and overlap(words, words_of(rule)) >= NEAR:
        return "repeats the rule"
    shares = [overlap(words, words_of(other)) for other in taken]
    if max(shares, default=0.0) == 1.0:
        return "duplicate"
    return "near duplicate" if max(shares, default=0.0) >= NEAR else ""


def words_of(text: str) -> list[str]:
    """Returns a text's words in lower case, and the single characters of scripts without spaces."""
    return WORD.findall(text.lower())


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Returns the share of distinct words that two texts have in common: Jaccard's index."""
    union = {*one, *other}
    return len({*one} & {*other}) / len(union) if union else 0.0
