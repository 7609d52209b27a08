"""Sampling: what is drawn follows the model's probabilities, the seed and the prompt's number, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from rdjax.generation import generate
from rdjax.models.load import load_model
from rdjax.sharding import make_mesh
from tests import tiny


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
