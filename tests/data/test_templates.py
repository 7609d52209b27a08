from rdjax.data.templates import alpaca_prompt, join_instruction


def test_alpaca_prompt_with_instruction_and_input():
    assert alpaca_prompt("Add them.", "1, 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd them.\n\n### Input:\n1, 2\n\n### Response:\n"
    )


def test_an_empty_instruction_keeps_its_header():
    assert alpaca_prompt("", "1, 2").endswith("### Instruction:\n\n\n### Input:\n1, 2\n\n### Response:\n")


def test_without_input_the_input_block_is_left_out():
    assert alpaca_prompt("Add them.", "") == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd them.\n\n### Response:\n"
    )


def test_the_text_is_taken_as_it_is():
    assert "### Instruction:\n {x} \n\n\n### Input:\n\t%s {0}\n\n\n### Response:\n" in alpaca_prompt(
        " {x} \n", "\t%s {0}\n"
    )


def test_join_instruction():
    assert join_instruction("The rule.", "Do it.") == "The rule.\n\nDo it."
    assert join_instruction("The rule.", "") == "The rule."
    assert join_instruction("", "Do it.") == "Do it."
    assert join_instruction("", "") == ""
