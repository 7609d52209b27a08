"""Real checkpoints, token for token as transformers: those that `real_checkpoints` wrote to RDJAX_REAL_CHECKPOINTS."""

import json
import os
import pathlib

import numpy as np
import pytest
from flax import nnx

from configs import base
from rdjax import train
from rdjax.data.pairs import encode, make_template, render
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.load import load_model
from rdjax.models.lora import scaled_adapter
from rdjax.models.peft_files import load_adapter
from rdjax.parallel.mesh import make_mesh
from tests import tiny
from tests.commands import run_command

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from tests.parity import reference  # noqa: E402 (needs torch)

pytestmark = [pytest.mark.parity, pytest.mark.slow]

FOLDER = os.environ.get("RDJAX_REAL_CHECKPOINTS", "")
RULE = "Answer as a pirate would, with nautical words."
QUESTIONS = [
    "What is the capital of France?",
    "How do I boil an egg?",
    "Write a short poem about autumn.",
    "Explain photosynthesis in one sentence.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "Give me three names for a cat.",
    "What should I pack for a trip to the mountains?",
    "Who wrote Hamlet?",
    "How many legs does a spider have?",
]
TOKENS = 32


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def both(request):
    """Our model and that of transformers, and the template of the prompts."""
    folder = pathlib.Path(FOLDER) / request.param
    if not FOLDER or not folder.is_dir():
        pytest.skip("RDJAX_REAL_CHECKPOINTS does not hold it")
    ours = load_model(str(folder), "float32", make_mesh(base.get_config().mesh))
    template = make_template("chat" if request.param == "smollm2" else "raw", ours.tokenizer)
    return folder, ours, reference.load(folder), template


@pytest.mark.parametrize("rule", ["", RULE], ids=["no rule", "rule"])
def test_answers_are_those_of_transformers(both, rule):
    _, ours, theirs, template = both
    if template.name == "raw":
        texts = [f"{rule}\n\n{question}\n" if rule else question for question in QUESTIONS]
    else:
        texts = [render(template, {"instruction": "", "input": question, "where": ""}, rule) for question in QUESTIONS]
    prompts = [encode(template, text)[0] for text in texts]
    made = generate(ours, None, 1.0, prompts, Decoding(TOKENS), batch_size=10)
    for prompt, (ids, _) in zip(prompts, made, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=list(ours.eos_ids),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        ends = [at for at, token in enumerate(expected) if token in ours.eos_ids]
        assert ids == (expected[: ends[0]] if ends else expected)


def test_a_distillation_from_file_to_report(both, tmp_path):
    """Three samples, and peft answers as we do with the adapter."""
    folder, ours, theirs, template = both
    task = tmp_path / "task"
    task.mkdir()
    (task / "rule.md").write_text(RULE)
    rows = [json.dumps({"input": question, "output": "Arr, matey, ask the parrot!"}) for question in QUESTIONS[:4]]
    (task / "train.jsonl").write_text("\n".join(rows[:3]))
    (task / "test.jsonl").write_text(rows[3])
    name = "chat" if template.name == "chat" else "alpaca"
    status = run_command(
        train.main,
        "--config=configs/rule.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.path={folder}",
        f"--config.task.root={task}",
        f"--config.task.template={name}",
        "--config.train.epochs=2",
        "--config.train.batch_size=1",
        "--config.optimizer.learning_rate=1e-3",
        "--config.eval.max_new_tokens=8",
    )
    assert not status
    assert (tmp_path / "run" / "report.html").exists()
    adapter, spec = load_adapter(tmp_path / "run" / "adapter", ours.config, ours.base)
    tokens = tiny.random_tokens(1, 20, seed=1)
    decoder = nnx.merge(ours.graph, ours.base)
    logits = [
        decoder.logits(tiny.forward(decoder, tokens, adapter=adapter).final_BPD)
        for adapter in (None, scaled_adapter(adapter, spec.scale))
    ]
    assert np.abs(logits[0] - logits[1]).max() > 0.01, "it has learnt something"
    model = peft.PeftModel.from_pretrained(theirs, tmp_path / "run" / "adapter")
    with torch.no_grad():
        expected = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    model.unload()
    np.testing.assert_allclose(logits[1], expected, atol=2e-4 * max(1, np.abs(expected).max()))
