"""Makes pairs: the same response after a prompt with the rule (the teacher's) and one without (the student's).

A pair holds what aligns its two token sequences: the response's tokens, which are the same in both, and how many last
tokens of the prompts are the same text. Both forward passes then gather the same tokens for the losses.
"""

import dataclasses
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rdjax.data.templates import alpaca_prompt, join_instruction
from rdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Holds a row's two prompts, as text and as token ids.

    Attributes:
      teacher_text, student_text: with and without the rule.
      teacher_ids, student_ids: their tokens.
      shared: how many last tokens of the two prompts are the same text, after the rule.
      where: file and row, for error messages.
    """

    teacher_text: str
    student_text: str
    teacher_ids: tuple[int, ...]
    student_ids: tuple[int, ...]
    shared: int
    where: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """Holds two prompts and the response to both.

    Attributes:
      response_ids: without the end of sequence.
      ended: whether the response is complete, so that its end of sequence is learnt too.
    """

    prompts: Prompts
    response_ids: tuple[int, ...]
    ended: bool = True


def render(template: str, tokenizer: PreTrainedTokenizerBase, rule: str, instruction: str, text: str) -> str:
    """Renders one prompt up to where the response begins; an empty `rule` gives the student's prompt."""
    if template == "alpaca":
        return alpaca_prompt(join_instruction(rule, instruction), text)
    messages = [{"role": "system", "content": rule}] if rule else []
    messages.append({"role": "user", "content": join_instruction(instruction, text)})
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the checkpoint's author: it may raise anything
        raise UserError(f"config.task.template = chat: the tokenizer's chat template fails ({error})") from None


def encode(template: str, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokenises a text: returns its ids and the character at which each begins, without a final end of sequence.

    The tokenizer adds its special tokens. A chat template writes them itself, so none are added to it: the beginning of
    sequence is never there twice.
    """
    encoded = tokenizer(text, add_special_tokens=template != "chat", return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    starts = [start for start, _ in encoded["offset_mapping"]]
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return tuple(ids), tuple(starts[: len(ids)])


def make_prompts(template: str, tokenizer: PreTrainedTokenizerBase, row: dict[str, str]) -> Prompts:
    """Renders and tokenises a row of a rule task with and without its rule."""
    question = (row["instruction"], row["input"])
    teacher_text = render(template, tokenizer, row["rule"], *question)
    student_text = render(template, tokenizer, "", *question)
    teacher_ids, starts = encode(template, tokenizer, teacher_text)
    student_ids, _ = encode(template, tokenizer, student_text)
    # A chat template may trim the rule or the row's last blank. Only text after the rule is shared.
    rule_start = teacher_text.rfind(row["rule"].strip())
    rule_end = rule_start + len(row["rule"].strip()) if rule_start >= 0 else len(teacher_text)
    shared = 0
    while (
        shared < min(len(teacher_ids), len(student_ids))
        and teacher_ids[-1 - shared] == student_ids[-1 - shared]
        and starts[-1 - shared] >= rule_end
    ):
        shared += 1
    return Prompts(teacher_text, student_text, teacher_ids, student_ids, shared, row["where"])


def make_pair(template: str, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, response: str) -> Pair:
    """Appends a response to both prompts.

    Raises:
      UserError: the response is empty, or its tokens depend on the prompt before it.
    """
    if not response.strip():
        raise UserError(f"{prompts.where}: the field output is empty; a response to learn from is needed")
    sides = []
    for text, ids in ((prompts.teacher_text, prompts.teacher_ids), (prompts.student_text, prompts.student_ids)):
        both, _ = encode(template, tokenizer, text + response)
        if both[: len(ids)] != ids:
            raise UserError(
                f"{prompts.where}: the output's first characters {response[:8]!r} melt into the prompt's last token; "
                "an output must not begin with white space"
            )
        sides.append(both[len(ids) :])
    if sides[0] != sides[1]:
        raise UserError(f"{prompts.where}: the output has other tokens behind the rule prompt than without it")
    return Pair(prompts, sides[0])


def check_lengths(pairs: Sequence[Pair], limit: int, limit_name: str) -> int:
    """Returns the longest sequence in tokens, end of sequence included.

    Raises:
      UserError: a sequence is longer than `limit`; names its row and `limit_name`.
    """
    longest = 0
    for pair in pairs:
        length = max(len(pair.prompts.teacher_ids), len(pair.prompts.student_ids)) + len(pair.response_ids) + pair.ended
        if length > limit:
            raise UserError(
                f"{pair.prompts.where}: prompt and response take {length} tokens, over {limit_name} = {limit}; "
                "nothing is cut: shorten the row or raise the limit"
            )
        longest = max(longest, length)
    return longest
