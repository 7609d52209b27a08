"""Prompt templates: how a rule, a row's own instruction and its input become one text."""

from collections.abc import Iterable, Mapping

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
    """The Alpaca prompt up to and with its response header.

    As in the published data the header of the instruction stays when the instruction is empty; the
    input block is left out when the input is.
    """
    if not text:
        return ALPACA_PREAMBLE_NO_INPUT + ALPACA_INSTRUCTION + instruction + ALPACA_RESPONSE
    return ALPACA_PREAMBLE + ALPACA_INSTRUCTION + instruction + ALPACA_INPUT + text + ALPACA_RESPONSE


def join_instruction(rule: str, instruction: str) -> str:
    """A rule followed by the row's own instruction, as in the published safety files."""
    return f"{rule}\n\n{instruction}" if rule and instruction else rule or instruction


DEMOS_LEAD = " Here are some examples:"


def demonstrate(samples: Iterable[Mapping[str, str]]) -> str:
    """Samples {input, output} as demos behind a rule, in the published form; "" where there are none."""
    parts = [ALPACA_INPUT + row["input"] + ALPACA_RESPONSE + row["output"] for row in samples]
    return DEMOS_LEAD + "".join(parts) if parts else ""
