import random

import pytest
from transformers import AutoTokenizer

from rdjax.data.rules.arithmetic import PAPER_RULE
from rdjax.data.templates import alpaca_prompt
from rdjax.models.load import ASSETS, EMBEDDED
from rdjax.rulebook.tokenizer import BOS, EOS, FIXED_STRINGS, PAD, build_tokenizer

VOCAB = 400
STRINGS = (
    "Grüße, 世界! 🎉👩‍👩‍👧",
    "a\tb\r\n  c \u2028 d",
    "é vs e\u0301",
    "\x00\x7f\x85",
    " 12  345 ",
    "</ s> <s >",
    "@@@@@@@",
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(seed=0, vocab=VOCAB, documents=60)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_vocabulary_has_the_wanted_size(tokenizer):
    assert len(tokenizer) == VOCAB


@pytest.mark.parametrize("fixed", FIXED_STRINGS)
def test_fixed_strings_are_single_tokens(tokenizer, fixed):
    assert len(ids_of(tokenizer, fixed)) == 1


def test_digits_stand_alone(tokenizer):
    assert [tokenizer.decode([number]) for number in ids_of(tokenizer, "1995")] == ["1", "9", "9", "5"]
    assert len(set(ids_of(tokenizer, "0123456789"))) == 10


def test_the_call_puts_bos_and_no_eos(tokenizer):
    ids = tokenizer("12 + 30 = ?")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids


def test_special_tokens(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (BOS, EOS, PAD)
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


@pytest.mark.parametrize("text", [*STRINGS, *FIXED_STRINGS, alpaca_prompt(PAPER_RULE.text(), "1 @@@ 2 = ?")])
def test_text_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_a_digit_knows_its_place(tokenizer):
    ones, tens = ids_of(tokenizer, "7"), ids_of(tokenizer, "70")
    assert ones[0] != tens[0]
    assert ids_of(tokenizer, "1470")[1:] == ids_of(tokenizer, "470")
    assert ids_of(tokenizer, "1470 7")[-1] == ones[0]
    assert tokenizer.decode(ids_of(tokenizer, "1234567 70 7.5")) == "1234567 70 7.5"


def test_symbols_are_split_into_characters_whatever_follows(tokenizer):
    for text in (" @@@ operation", "@@@.", " @#@ b"):
        tokens = [tokenizer.decode([number]).strip() for number in ids_of(tokenizer, text)]
        assert [token for token in tokens if token][:3] == list(text.strip()[:3])


def test_random_unicode_survives_a_round_trip(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        points = [rng.choice((rng.randrange(0x20, 0x250), rng.randrange(0xE100, 0x11000))) for _ in range(12)]
        text = "".join(map(chr, points))
        assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_the_same_seed_gives_the_same_tokenizer(tokenizer):
    again = build_tokenizer(seed=0, vocab=VOCAB, documents=60)
    other = build_tokenizer(seed=1, vocab=VOCAB, documents=60)
    assert again.get_vocab() == tokenizer.get_vocab() != other.get_vocab()


def test_transformers_loads_the_saved_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for text in (alpaca_prompt(PAPER_RULE.text(), "1 @@@ 2 = ?"), *STRINGS):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_tokenizers_have_the_fixed_strings_whole(name):
    embedded = AutoTokenizer.from_pretrained(ASSETS / name)
    assert [len(ids_of(embedded, fixed)) for fixed in FIXED_STRINGS] == [1] * len(FIXED_STRINGS)
    assert len(ids_of(embedded, "1995")) == 4
