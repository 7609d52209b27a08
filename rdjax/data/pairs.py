"""Makes pairs: the same response after a prompt with the rule (the teacher's) and one without (the student's).

A pair holds what aligns its two token sequences: the response's tokens, which are the same in both, and how many last
tokens of the prompts are the same text. Both forward passes then gather the same tokens for the losses.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rdjax.data.chat import chat_template, check_conversation, render_conversation, row_messages, with_rule
from rdjax.data.templates import Template, alpaca_prompt, join_instruction
from rdjax.errors import UserError

LEAST_RULE = 12  # characters of a rule that is looked for in the rows; shorter ones may be part of any text


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Holds a row's two prompts, as text and as token ids.

    Attributes:
      teacher_text, student_text: with and without the rule.
      teacher_ids, student_ids: their tokens.
      shared: how many last tokens of the two prompts are the same text, after the rule.
      where: file and row, for error messages.
      rule: the text that only the teacher's prompt has.
    """

    teacher_text: str
    student_text: str
    teacher_ids: tuple[int, ...]
    student_ids: tuple[int, ...]
    shared: int
    where: str
    rule: str = ""


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


def make_template(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    rule_place: str = "",
    arguments: Mapping[str, Any] | None = None,
    source: str = "",
) -> Template:
    """Returns a template by its name; the others are of a chat template (`chat.chat_template`)."""
    if name == "chat":
        return chat_template(tokenizer, rule_place, arguments or {}, source)
    return Template(name, tokenizer, end_id=tokenizer.eos_token_id)


def render(template: Template, row: Mapping[str, str], rule: str) -> str:
    """Renders the prompt of a row up to where the response begins; an empty `rule` gives the student's prompt.

    Raises:
      UserError: the template fails, or has no place for the turns of a conversation; names the row.
    """
    if template.name == "chat":
        return render_conversation(template, with_rule(template, row_messages(row), rule), row["where"])
    if row.get("history"):
        raise UserError(f"{row['where']}: several messages need config.task.template = chat")
    return alpaca_prompt(join_instruction(rule, row["instruction"]), row["input"])


def encode(template: Template, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokenises a text: returns its ids and the character at which each begins, without a final end of sequence.

    The tokenizer adds its special tokens. None are added to what a chat template made, or to a text that begins with
    the beginning of sequence: it is never there twice.
    """
    tokenizer = template.tokenizer
    own = template.name == "chat" or text.startswith(tokenizer.bos_token or "\0")
    encoded = tokenizer(text, add_special_tokens=not own, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    starts = [start for start, _ in encoded["offset_mapping"]]
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return tuple(ids), tuple(starts[: len(ids)])


def make_prompts(template: Template, row: Mapping[str, str]) -> Prompts:
    """Renders and tokenises a row of a rule task with and without its rule.

    Raises:
      UserError: the template fails or leaves the rule out, the row has the rule in its own text, or the output holds
        its own end.
    """
    check_output(template, row)
    rule = row["rule"].strip()
    teacher_text, student_text = render(template, row, row["rule"]), render(template, row, "")
    check_messages(row, student_text)
    if not rule:  # the teacher is the base without the rule
        ids, _ = encode(template, student_text)
        return Prompts(student_text, student_text, ids, ids, len(ids), row["where"])
    if len(rule) >= LEAST_RULE and rule in f"{row['instruction']}\n{row['input']}\n{_history_text(row)}":
        raise UserError(
            f"{row['where']}: the row's own text has the rule, so that the student would read it; leave it out of "
            "instruction, input and messages"
        )
    # A chat template may trim the rule or the row's last blank. Only text after the rule is shared.
    rule_start = teacher_text.rfind(rule)
    if rule_start < 0:
        raise UserError(f"{row['where']}: the chat template changes the rule or leaves it out")
    teacher_ids, starts = encode(template, teacher_text)
    student_ids, _ = encode(template, student_text)
    shared = 0
    while (
        shared < min(len(teacher_ids), len(student_ids))
        and teacher_ids[-1 - shared] == student_ids[-1 - shared]
        and starts[-1 - shared] >= rule_start + len(rule)
    ):
        shared += 1
    return Prompts(teacher_text, student_text, teacher_ids, student_ids, shared, row["where"], rule)


def check_messages(row: Mapping[str, str], text: str) -> None:
    """Checks that a prompt has a conversation's system and user messages; earlier answers may be changed (thinking).

    Raises:
      UserError: names the row.
    """
    for message in row_messages(row) if row.get("history") else ():
        if message["role"] != "assistant" and message["content"].strip() not in text:
            raise UserError(
                f"{row['where']}: the chat template leaves out or changes the {message['role']}'s message "
                f"{message['content'][:40]!r}; leave it out, or take a template that keeps it (task.chat_template)"
            )


def _history_text(row: Mapping[str, str]) -> str:
    """Returns the texts of a row's earlier messages."""
    return "\n".join(message["content"] for message in row_messages(row)[:-1])


def check_output(template: Template, row: Mapping[str, str]) -> None:
    """Refuses with UserError an output that has a token that ends answers: no answer would ever equal it."""
    for end in {template.end_text, str(template.tokenizer.eos_token)}:
        if end in row.get("output", ""):
            raise UserError(f"{row['where']}: the output has {end}, which is added at its end by itself; leave it out")


def make_pair(template: Template, row: Mapping[str, str]) -> Pair:
    """Appends the row's output to both of its prompts.

    Raises:
      UserError: as `make_prompts`; the output is empty, is not what a chat template makes of it, or has tokens that
        depend on the prompt before it.
    """
    prompts, response = make_prompts(template, row), row["output"]
    if not response.strip():
        raise UserError(f"{prompts.where}: the field output is empty; a response to learn from is needed")
    if template.name == "chat":
        messages = row_messages(row)
        check_conversation(template, messages, prompts.student_text, response, prompts.where)
        teacher = with_rule(template, messages, row["rule"])
        check_conversation(template, teacher, prompts.teacher_text, response, prompts.where)
    sides = []
    for text, ids in ((prompts.teacher_text, prompts.teacher_ids), (prompts.student_text, prompts.student_ids)):
        both, _ = encode(template, text + template.lead + response + template.trail)
        if both[: len(ids)] != ids:
            raise UserError(
                f"{prompts.where}: the output's first characters {response[:8]!r} melt into the prompt's last token; "
                "an output must not begin with white space"
            )
        sides.append(both[len(ids) :])
    if sides[0] != sides[1]:
        raise UserError(f"{prompts.where}: the output has other tokens behind the rule prompt than without it")
    return Pair(prompts, sides[0])


def keep_rule(pair: Pair) -> Pair:
    """Returns the same pair with the rule in the student's prompt too."""
    prompts = pair.prompts
    return dataclasses.replace(
        pair, prompts=dataclasses.replace(prompts, student_text=prompts.teacher_text, student_ids=prompts.teacher_ids)
    )


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
