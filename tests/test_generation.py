"""Sampling: what is drawn follows the model's probabilities, the seed and the prompt's number, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from rdjax import generation
from rdjax.data import batches
from rdjax.generation import generate
from rdjax.models.load import load_model
from rdjax.sharding import make_mesh
from tests import tiny
from tests.distill.case import random_adapter


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.write_random_checkpoint(folder, tiny.LLAMA2)
    return load_model(str(tiny.write_tokenizer(folder)), "float32", make_mesh(base.get_config().mesh))


PROMPTS = [tiny.random_tokens(length, seed=length).tolist() for length in (3, 9, 40, 5, 12)]


def draw(model, batch_size: int = 8, **options):
    return generate(model, None, 1.0, PROMPTS, 6, batch_size, ignore_eos=True, **options)


def test_draws_do_not_depend_on_the_batch(model):
    assert draw(model, temperature=1.0, seed=3) == draw(model, batch_size=2, temperature=1.0, seed=3)


def test_draws_follow_the_seed(model):
    assert draw(model, temperature=1.0, seed=3) != draw(model, temperature=1.0, seed=4)


def test_a_cold_draw_is_the_greedy_choice(model):
    assert draw(model, temperature=1e-6, seed=3) == draw(model)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_are_as_frequent_as_the_model_says(model, temperature):
    count, prompt = 4000, PROMPTS[0]
    drawn = generate(model, None, 1.0, [prompt] * count, 1, count, ignore_eos=True, temperature=temperature)
    observed = np.bincount([ids[0] for ids, _ in drawn], minlength=model.config.vocab) / count
    decoder = nnx.merge(model.graph, model.base)
    logits_V = decoder.logits(tiny.forward(decoder, np.array([prompt], np.int32)).final_BTD)[0, -1]
    expected = np.asarray(jax.nn.softmax(jnp.asarray(logits_V) / temperature))
    assert np.abs(observed - expected).max() < 5 * np.sqrt(expected.max() / count)
    assert expected.max() > 2 / model.config.vocab, "the probabilities differ enough to tell"


SHARED = tiny.random_tokens(21, seed=99).tolist()


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"batch_size": 2}])
def test_a_prefix_that_prompts_share_changes_nothing(model, monkeypatch, options):
    prompts = [SHARED + prompt for prompt in PROMPTS]
    adapter = random_adapter(model.config)
    options = {"batch_size": 8, "ignore_eos": True, **options}
    lengths = []
    real = generation._decode

    def spy(base, adapter, prefix_C, tokens_BT, *rest, **more):
        lengths.append((prefix_C.shape[0], tokens_BT.shape[1]))
        return real(base, adapter, prefix_C, tokens_BT, *rest, **more)

    monkeypatch.setattr(generation, "_decode", spy)
    reused = generate(model, adapter, 1.0, prompts, 6, **options)
    assert {prefix for prefix, _ in lengths} == {16}
    lengths.clear()
    monkeypatch.setattr(batches, "PREFIX_PAYS", 10**6)
    assert generate(model, adapter, 1.0, prompts, 6, **options) == reused
    assert {prefix for prefix, _ in lengths} == {0} and max(width for _, width in lengths) >= 61


def test_no_prompt_has_no_answer(model):
    assert generate(model, None, 1.0, [], 6, 8) == []
