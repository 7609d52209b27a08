"""Checks that runs which share a tokenizer keep their own chat templates."""

from configs import base
from rdjax.run.template import task_template
from tests.data.test_chat import CHATML, THINKING
from tests.data.test_pairs import byte_tokenizer


def test_a_chat_template_of_ones_own_stays_with_its_run(tmp_path):
    (tmp_path / "own.jinja").write_text(CHATML)
    tokenizer, config = byte_tokenizer(THINKING), base.get_config().task
    config.template, config.chat_template = "chat", str(tmp_path / "own.jinja")
    assert task_template(config, tokenizer).source == CHATML
    config.chat_template = ""
    assert task_template(config, tokenizer).source == THINKING
