"""Describes prompt templates, and writes Alpaca prompts: a rule, a row's own instruction and its input in one text."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Template:
    """Describes how prompts are made for a tokenizer.

    Attributes:
      name: "alpaca"; "chat": the tokenizer's chat template (`data.chat`); "raw": prompts are used as they are.
      tokenizer: of the model.
      source: of a chat template.
      rule_place: the message that a chat template's rule stands in, "system" or "user".
      arguments: of the chat template.
      lead, trail: white space that the chat template writes before and after an answer.
      end_id: the token that ends an answer.
      notes: lines for the log.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    source: str = ""
    rule_place: str = "system"
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lead: str = ""
    trail: str = ""
    end_id: int = -1
    notes: tuple[str, ...] = ()

    @property
    def end_text(self) -> str:
        """Returns the text of the token that ends an answer."""
        return self.tokenizer.convert_ids_to_tokens(self.end_id)


ALPACA_PREAMBLE = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
ALPACA_PREAMBLE_NO_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
ALPACA_INSTRUCTION = "### Instruction:\n"
ALPACA_INPUT = "\n\n### Input:\n"
ALPACA_RESPONSE = "\n\n### Response:\n"


def alpaca_prompt(instruction: str, text: str) -> str:
    """Returns the Alpaca prompt, which ends with the header of the response.

    As in the published data, an empty instruction keeps its header, and an empty input leaves its block out.
    """
    if not text:
        return ALPACA_PREAMBLE_NO_INPUT + ALPACA_INSTRUCTION + instruction + ALPACA_RESPONSE
    return ALPACA_PREAMBLE + ALPACA_INSTRUCTION + instruction + ALPACA_INPUT + text + ALPACA_RESPONSE


def join_instruction(rule: str, instruction: str) -> str:
    """Joins a rule and the row's own instruction with a blank line, as the published safety files do."""
    return f"{rule}\n\n{instruction}" if rule and instruction else rule or instruction


DEMOS_LEAD = " Here are some examples:"


def demonstrate(samples: Iterable[Mapping[str, str]]) -> str:
    """Returns samples {input, output} as demos to follow a rule, in the published form; "" for no samples."""
    parts = [ALPACA_INPUT + row["input"] + ALPACA_RESPONSE + row["output"] for row in samples]
    return DEMOS_LEAD + "".join(parts) if parts else ""
