"""Decoding: what is drawn follows the model's probabilities, the seed and the prompt's number, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from rdjax.data import prefix as prefix_module
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.generation.sample import truncated
from rdjax.models.decoder import Decoder
from rdjax.models.load import load_model
from rdjax.parallel.mesh import make_mesh
from tests import tiny
from tests.distillation.case import random_adapter


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.write_random_checkpoint(folder, tiny.LLAMA2)
    return load_model(str(tiny.write_tokenizer(folder)), "float32", make_mesh(base.get_config().mesh))


PROMPTS = [tiny.random_tokens(length, seed=length).tolist() for length in (3, 9, 40, 5, 12)]


def draw(model, batch_size: int = 8, seed: int = 0, **options):
    return generate(model, None, 1.0, PROMPTS, Decoding(6, ignore_eos=True, **options), batch_size, seed)


def test_draws_do_not_depend_on_the_batch(model):
    assert draw(model, temperature=1.0, seed=3) == draw(model, batch_size=2, temperature=1.0, seed=3)


def test_draws_follow_the_seed(model):
    assert draw(model, temperature=1.0, seed=3) != draw(model, temperature=1.0, seed=4)


def test_a_cold_draw_is_the_greedy_choice(model):
    assert draw(model, temperature=1e-6, seed=3) == draw(model)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_are_as_frequent_as_the_model_says(model, temperature):
    count, prompt = 4000, PROMPTS[0]
    drawn = generate(model, None, 1.0, [prompt] * count, Decoding(1, temperature=temperature, ignore_eos=True), count)
    observed = np.bincount([ids[0] for ids, _ in drawn], minlength=model.config.vocab) / count
    decoder = nnx.merge(model.graph, model.base)
    logits_V = decoder.logits(tiny.forward(decoder, np.array([prompt], np.int32)).final_BPD)[0, -1]
    expected = np.asarray(jax.nn.softmax(jnp.asarray(logits_V) / temperature))
    assert np.abs(observed - expected).max() < 5 * np.sqrt(expected.max() / count)
    assert expected.max() > 2 / model.config.vocab, "the probabilities differ enough to tell"


def test_truncated_keeps_the_most_likely():
    logits_BV = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.15, 0.05]]))

    def kept(top_k, top_p):
        return [np.flatnonzero(np.isfinite(row)).tolist() for row in truncated(logits_BV, top_k, top_p)]

    assert kept(0, 1.0) == kept(9, 1.0) == [[0, 1, 2, 3]] * 2
    assert kept(2, 1.0) == [[1, 3], [0, 2]]
    assert kept(1, 1.0) == kept(0, 1e-6) == kept(0, 0.0) == [[1], [0]]
    # The fewest that reach the probability: 0.4 + 0.3 + 0.2, and 0.7 + 0.15.
    assert kept(0, 0.84) == [[1, 2, 3], [0, 2]]
    assert kept(0, 0.6) == [[1, 3], [0]]
    # Of the two most likely, 0.4 / 0.7 and 0.7 / 0.85 of what is left.
    assert kept(2, 0.55) == [[1], [0]]
    assert kept(2, 0.6) == [[1, 3], [0]]


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.3}])
def test_draws_are_of_what_is_left(model, options):
    count, prompt = 400, PROMPTS[1]
    decoder = nnx.merge(model.graph, model.base)
    logits_V = decoder.logits(tiny.forward(decoder, np.array([prompt], np.int32)).final_BPD)[0, -1]
    left = np.asarray(truncated(jnp.asarray(logits_V)[None], options.get("top_k", 0), options.get("top_p", 1.0)))[0]
    decoding = Decoding(1, temperature=1.0, ignore_eos=True, **options)
    drawn = {ids[0] for ids, _ in generate(model, None, 1.0, [prompt] * count, decoding, count)}
    assert drawn == set(np.flatnonzero(np.isfinite(left)).tolist())


def test_one_beam_wide_or_many_finds_no_worse(model):
    """The mean log-probability of what beam search finds is no lower than the greedy response's."""

    def score(made):
        graph, base = model.graph, model.base
        scores = []
        for prompt, (ids, _) in zip(PROMPTS, made, strict=True):
            decoder = nnx.merge(graph, base)
            final = tiny.forward(decoder, np.array([prompt + ids], np.int32)).final_BPD
            log_TV = np.asarray(jax.nn.log_softmax(decoder.logits(jnp.asarray(final))))[0, len(prompt) - 1 : -1]
            scores.append(log_TV[np.arange(len(ids)), ids].mean())
        return np.array(scores)

    greedy, found = score(draw(model)), score(draw(model, beams=4))
    assert (found >= greedy - 1e-5).all() and (found > greedy + 1e-3).any()
    assert draw(model, beams=4, batch_size=2) == draw(model, beams=4)


SHARED = tiny.random_tokens(21, seed=99).tolist()


@pytest.mark.parametrize("batch_size", [8, 2])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"beams": 3}])
def test_a_prefix_that_prompts_share_changes_nothing(model, monkeypatch, options, batch_size):
    prompts = [SHARED + prompt for prompt in PROMPTS]
    adapter = random_adapter(model.config)
    decoding = Decoding(6, ignore_eos=True, **options)
    prefixes = []
    read_prefix = Decoder.read_prefix

    def spy(decoder, tokens_C, *rest):
        prefixes.append(tokens_C.shape[0])
        return read_prefix(decoder, tokens_C, *rest)

    monkeypatch.setattr(Decoder, "read_prefix", spy)
    jax.clear_caches()  # the spy sees only what is traced anew
    reused = generate(model, adapter, 1.0, prompts, decoding, batch_size)
    assert set(prefixes) == {16}
    prefixes.clear()
    monkeypatch.setattr(prefix_module, "SHORTEST_PREFIX", 10**6)
    assert generate(model, adapter, 1.0, prompts, decoding, batch_size) == reused
    assert not prefixes


def test_no_prompt_has_no_answer(model):
    assert generate(model, None, 1.0, [], Decoding(6), 8) == []
