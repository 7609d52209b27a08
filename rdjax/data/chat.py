"""Makes prompts by the chat template of a tokenizer, and finds out how the template treats rules and answers."""

import contextlib
import dataclasses
import datetime
import json
import pathlib
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rdjax.data.templates import Template, join_instruction
from rdjax.errors import UserError
from rdjax.storage.files import parse_json

Message = dict[str, str]

# Bounds of rendering one conversation.
MOST_SECONDS = 8.0
MOST_BYTES = 2**30  # of memory, beside what the process has
PROCESS_MEMORY = pathlib.Path("/proc/self/statm")  # of Linux; its first number is the address space in pages
MOST_CHARACTERS, MOST_TIMES = 2**20, 8  # beside the messages, and of these

EXAMPLE = 'accepted: such as {"enable_thinking": true}'
QUESTION, ANSWER, RULE = "Question", "Answer", "Rule"  # texts to try a template with
# What a template sees as today, where it writes the date: the same tomorrow, so that caches and resumed runs fit. It is
# the date that Llama 3.2's template writes where it can read no clock.
TODAY = datetime.date(2024, 7, 26)
CLOCK = re.compile(r"""strftime_now\s*\(\s*(?P<quote>['"])(?P<format>.*?)(?P=quote)\s*\)""")


class TemplateTimeoutError(UserError):
    """Reports a chat template that does not end."""


def read_arguments(text: str, field: str) -> dict[str, Any]:
    """Reads arguments of a chat template from a JSON object; an empty text has none.

    Raises:
      UserError: it is no JSON object.
    """
    arguments = parse_json(text or "{}", f"{field} = {text[:200]!r} ({EXAMPLE})")
    if not isinstance(arguments, dict):
        raise UserError(f"{field} = {text!r} must hold a JSON object; {EXAMPLE}")
    return arguments


def chat_template(
    tokenizer: PreTrainedTokenizerBase, rule_place: str, arguments: Mapping[str, Any], source: str = ""
) -> Template:
    """Returns the template of a tokenizer, which stays as it is: other runs may share it.

    Args:
      rule_place: "system" or "user"; empty: the system message, or the user's if the template drops system messages.
      arguments: of the template; they win over rdjax's own: no thinking, and a fixed date.
      source: a chat template in place of the tokenizer's own.

    Raises:
      UserError: the tokenizer has no template, it drops the rule, it does not write an answer behind its prompt, or the
        date that it writes cannot be fixed.
    """
    try:
        source = source or tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(f"config.task.template = chat: the tokenizer has no chat template ({error})") from None
    own: dict[str, Any] = {}
    if "enable_thinking" in source:
        own["enable_thinking"] = False
    source, dates = CLOCK.subn(lambda call: json.dumps(TODAY.strftime(call["format"])), source)
    if "strftime_now" in re.sub(r"strftime_now\s+is\s+(not\s+)?defined", "", source):
        raise UserError(
            "config.task.template = chat: the chat template writes a date by strftime_now in a form that rdjax cannot "
            "fix, so that prompts would differ from day to day; task.chat_template takes a file with another template"
        )
    template = Template(
        "chat", tokenizer, source, rule_place or "system", {**own, **arguments}, end_id=tokenizer.eos_token_id
    )
    notes = [f"the chat template is given {name} = {value}" for name, value in own.items() if name not in arguments]
    notes += [f"the chat template writes a date; it is always {TODAY}"] if dates else []
    if not _keeps_rule(template):
        if rule_place:
            raise UserError(
                f"config.task.rule_place = {rule_place}: the chat template leaves a rule out there; accepted: "
                f"{'user' if rule_place == 'system' else 'system'}"
            )
        template = dataclasses.replace(template, rule_place="user")
        if not _keeps_rule(template):
            render_chat(template, [_user(QUESTION)])  # raises where the template fails
            raise UserError("config.task.template = chat: the chat template leaves the user's message out")
        notes.append("the chat template keeps no system message; the rule stands before the user's")
    return dataclasses.replace(_with_end(template), notes=tuple(notes))


def _keeps_rule(template: Template) -> bool:
    """Tells whether a rule stands in what the template makes of a question, and still does with the answer.

    Those of Mistral 7B v0.3 and Nemo write a system message only while it is the user's turn.
    """
    messages = with_rule(template, [_user(QUESTION)], RULE)
    try:
        return RULE in render_chat(template, messages) and RULE in render_chat(
            template, [*messages, _assistant(ANSWER)], generate=False
        )
    except TemplateTimeoutError:  # says nothing of the rule
        raise
    except UserError:
        return False


def _with_end(template: Template) -> Template:
    """Returns the template with what it writes around an answer.

    Raises:
      UserError: the answer does not follow the prompt.
    """
    messages = [_user(QUESTION)]
    prompt = render_chat(template, messages)
    whole = render_chat(template, [*messages, _assistant(ANSWER)], generate=False)
    lead, found, rest = whole.removeprefix(prompt).partition(ANSWER)
    if not whole.startswith(prompt) or not found or lead.strip():
        raise UserError(
            f"config.task.template = chat: the chat template ends a prompt with {prompt[-30:]!r}, and puts "
            f"{whole.partition(ANSWER)[0][-30:]!r} before an answer in a conversation; the two must be the same "
            "(task.chat_template takes a file with another template)"
        )
    if not rest.strip():  # GLM 4 ends an answer by the beginning of the next turn
        following = render_chat(template, [*messages, _assistant(ANSWER), _user(QUESTION)], generate=False)
        rest = following.removeprefix(prompt).partition(ANSWER)[2]
    trail = rest[: len(rest) - len(rest.lstrip())]
    ids = template.tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"]
    special = set(template.tokenizer.all_special_ids) | set(template.tokenizer.added_tokens_decoder)
    if not ids or ids[0] not in special:  # turns have no end of their own
        return dataclasses.replace(template, lead=lead)
    return dataclasses.replace(template, lead=lead, trail=trail, end_id=ids[0])


def render_chat(template: Template, messages: Sequence[Message], generate: bool = True) -> str:
    """Renders messages.

    Args:
      generate: end with the header of an answer.

    Raises:
      UserError: the template fails.
    """
    try:
        with time_limit(MOST_SECONDS), memory_limit(MOST_BYTES):
            text = template.tokenizer.apply_chat_template(
                list(messages),
                chat_template=template.source,
                tokenize=False,
                add_generation_prompt=generate,
                **template.arguments,
            )
    except TimeoutError as error:
        raise TemplateTimeoutError(f"config.task.template = chat: the tokenizer's chat template is {error}") from None
    except MemoryError:
        most = f"{MOST_BYTES >> 20} MiB of memory"
        raise UserError(f"config.task.template = chat: the tokenizer's chat template needs more than {most}") from None
    except Exception as error:  # a template is a program of the checkpoint's author: it may raise anything
        raise UserError(f"config.task.template = chat: the tokenizer's chat template fails ({error})") from None
    given = sum(len(message["content"]) for message in messages)
    if len(text) > MOST_CHARACTERS + MOST_TIMES * given:
        raise UserError(
            f"config.task.template = chat: the chat template makes {len(text)} characters of {given}; accepted: at "
            f"most {MOST_CHARACTERS} + {MOST_TIMES} times as many"
        )
    return text


def render_conversation(template: Template, messages: Sequence[Message], where: str, *, generate: bool = True) -> str:
    """Renders the conversation of a row, as `render_chat` does; an error names the row."""
    try:
        return render_chat(template, messages, generate=generate)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends a `with` block with TimeoutError after some time; in threads, which no signal reaches, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"not done after {seconds:g} seconds")

    handler = signal.signal(signal.SIGALRM, stop)
    began, (left, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # of a timer that the caller has set
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)


@contextlib.contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """Has Python raise MemoryError in a `with` block that asks for more than `extra` bytes.

    Without it `"x" * 10**11` in a template takes all memory, and the kernel kills the process or another. Only Linux
    counts a process's address space; elsewhere this does nothing.
    """
    if not PROCESS_MEMORY.exists():
        yield
        return
    import resource  # imported here because Windows lacks it

    pages = int(PROCESS_MEMORY.read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + extra
    if soft != resource.RLIM_INFINITY and soft <= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def row_messages(row: Mapping[str, str]) -> list[Message]:
    """Returns the conversation of a row up to the user's last message."""
    return [*json.loads(row.get("history") or "[]"), _user(join_instruction(row["instruction"], row["input"]))]


def with_rule(template: Template, messages: Sequence[Message], rule: str) -> list[Message]:
    """Puts a rule before the first message of the system, or of the user, as the template says."""
    if not rule:
        return list(messages)
    if template.rule_place == "system":
        first, *rest = messages if messages[0]["role"] == "system" else [{"role": "system", "content": ""}, *messages]
        return [{**first, "content": join_instruction(rule, first["content"])}, *rest]
    at = next(number for number, message in enumerate(messages) if message["role"] == "user")
    first = {**messages[at], "content": join_instruction(rule, messages[at]["content"])}
    return [*messages[:at], first, *messages[at + 1 :]]


def check_conversation(template: Template, messages: Sequence[Message], prompt: str, response: str, where: str) -> None:
    """Checks that prompt, response and its end are what the template makes of the whole conversation.

    Raises:
      UserError: names the row: the template fails, or where the two texts part.
    """
    whole = render_conversation(template, [*messages, _assistant(response)], where, generate=False)
    learnt = prompt + template.lead + response + template.trail
    if not whole.startswith(learnt):
        parts = next((at for at, pair in enumerate(zip(learnt, whole, strict=False)) if pair[0] != pair[1]), len(whole))
        raise UserError(
            f"{where}: the chat template writes {whole[parts : parts + 20]!r} where the output has "
            f"{learnt[parts : parts + 20]!r}; an output must be what the template makes of it"
        )


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
