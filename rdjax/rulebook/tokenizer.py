"""A small byte-level BPE tokenizer for the embedded model, trained on rule documents.

Every digit is a token of its own that knows its place: the 7 of 70 and the 7 of 7 are two tokens. A model of
two million parameters that has to find the digits of equal place by counting positions learns to add four
digits only after thousands of steps; with tagged digits it looks them up by content.
"""

import random
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rdjax.data import templates
from rdjax.data.templates import DEMOS_LEAD
from rdjax.rulebook.documents import SYMBOL_CHARACTERS, arithmetic_document, refusal_document, sentiment_document

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

# The template's fixed strings are one token each: documents become almost half as long.
FIXED_STRINGS = (
    templates.ALPACA_PREAMBLE,
    templates.ALPACA_PREAMBLE_NO_INPUT,
    templates.ALPACA_INSTRUCTION,
    templates.ALPACA_INPUT,
    templates.ALPACA_RESPONSE,
    DEMOS_LEAD,
    " = ?",
)


# Tens to ten-thousands; digits of the ones' place, and beyond, stay plain.
TAGGED_PLACES = (1, 2, 3, 4)


def tagged_digit(digit: int, place: int) -> str:
    """The private-use character that stands for a digit at 10^place inside the tokenizer."""
    return chr(0xE000 + 16 * place + digit)


def _tag_places() -> normalizers.Normalizer:
    # From the highest place down, so that the digits to the right are still plain when they are counted.
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(f"{digit}(?=[0-9]{{{place}}}(?![0-9]))"), tagged_digit(digit, place))
            for place in reversed(TAGGED_PLACES)
            for digit in range(10)
        ]
    )


def build_tokenizer(seed: int, vocab: int, documents: int) -> PreTrainedTokenizerFast:
    """Trains a BPE of `vocab` tokens (fixed strings included) on generated documents; digits stand alone."""
    rng = random.Random(f"tokenizer-{seed}")
    texts = []
    for number in range(documents):
        # The tasks in turn: language has more words to learn than its share of the training text would show.
        document = (arithmetic_document, sentiment_document, refusal_document)[number % 3](rng, 4)
        texts += [document.prefix, *(text for pair in document.questions for text in pair)]
    # Fixed strings and numbers have tokens already: they would only distort the counts.
    for fixed in FIXED_STRINGS:
        texts = [text.replace(fixed, "\n") for text in texts]
    texts = [re.sub("[0-9]+", "0", text) for text in texts]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _tag_places()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            # A new symbol is copied character by character, whatever stands behind it.
            pre_tokenizers.Split(Regex(f" ?[{re.escape(SYMBOL_CHARACTERS)}]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tagged = [(digit, place) for place in TAGGED_PLACES for digit in range(10)]
    plain_again = [decoders.Replace(tagged_digit(digit, place), str(digit)) for digit, place in tagged]
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), *plain_again])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(FIXED_STRINGS) - len(tagged),
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in FIXED_STRINGS])
    tokenizer.add_tokens([AddedToken(tagged_digit(*pair), normalized=True) for pair in tagged])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
