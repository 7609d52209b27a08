"""Decoding against transformers' own `generate`."""

import dataclasses

import pytest

from configs import base
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.load import load_model
from rdjax.parallel.mesh import make_mesh
from tests import tiny

torch = pytest.importorskip("torch")
from tests.parity import reference  # noqa: E402 (needs torch)

pytestmark = pytest.mark.parity

PROMPTS = [tiny.random_tokens(length, seed=length).tolist() for length in (3, 9, 17, 5)]
STEPS = 12


def load_both(name: str, folder):
    """Our model and theirs, of one random checkpoint."""
    tiny.write_random_checkpoint(folder, tiny.CONFIGS[name], seed=5)
    tiny.write_tokenizer(folder)
    return load_model(str(folder), "float32", make_mesh(base.get_config().mesh)), reference.load(folder)


@pytest.fixture(scope="module", params=["llama2", "llama3", "gemma3"])
def both(request, tmp_path_factory):
    return load_both(request.param, tmp_path_factory.mktemp("model"))


def theirs(model, prompt: list[int], eos: list[int], beams: int, steps: int = STEPS) -> list[int]:
    """The new tokens, less an end of sequence and what pads behind it."""
    made = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        max_new_tokens=steps,
        num_beams=beams,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    ends = [at for at, token in enumerate(made) if token in eos]
    return made[: ends[0]] if ends else made


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("ends", [1, 40])
def test_responses_equal_those_of_transformers(both, beams, ends):
    """With few ends of sequence, and with so many that beams end early and at different lengths."""
    ours, model = both
    eos = list(range(257, 257 - ends, -1))
    made = generate(
        dataclasses.replace(ours, eos_ids=tuple(eos)), None, 1.0, PROMPTS, Decoding(STEPS, beams), batch_size=4
    )
    assert [ids for ids, _ in made] == [theirs(model, prompt, eos, beams) for prompt in PROMPTS]
    if ends == 40 and beams == 1:
        assert any(len(ids) < STEPS for ids, _ in made), "some end early"


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_64_greedy_tokens_equal_those_of_transformers(name, tmp_path):
    """Far past the windows of the families that have one."""
    ours, model = load_both(name, tmp_path)
    made = generate(ours, None, 1.0, PROMPTS[:2], Decoding(64, ignore_eos=True), batch_size=2)
    assert [ids for ids, _ in made] == [theirs(model, prompt, [-1], 1, 64) for prompt in PROMPTS[:2]]
