"""Writes prompts: puts a rule, a row's own instruction and its input into one text."""

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
