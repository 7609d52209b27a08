"""Trains a small byte-level BPE tokenizer for the embedded models on rule documents.

Every digit is one token, tagged with its place: the 7 of 70 and the 7 of 7 are two tokens. A model of two million
parameters that must find the digits of equal place by counting positions needs thousands of steps to learn to add
four digits; with tagged digits it finds them by content.
"""

import random
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rdjax.data import templates
from rdjax.data.templates import DEMOS_LEAD
from rdjax.rulebook.documents import SYMBOL_CHARACTERS, arithmetic_document, refusal_document, sentiment_document

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

# One token for each of the template's fixed strings: documents become almost half as long.
FIXED_STRINGS = (
    templates.ALPACA_PREAMBLE,
    templates.ALPACA_PREAMBLE_NO_INPUT,
    templates.ALPACA_INSTRUCTION,
    templates.ALPACA_INPUT,
    templates.ALPACA_RESPONSE,
    DEMOS_LEAD,
    " = ?",
)


# Tens to ten-thousands; digits of the ones' place and of higher places stay plain.
TAGGED_PLACES = (1, 2, 3, 4)
TAGGED_DIGITS = [(digit, place) for place in TAGGED_PLACES for digit in range(10)]


def tagged_digit(digit: int, place: int) -> str:
    """Returns the private-use character that represents a digit at 10^place inside the tokenizer."""
    return chr(0xE000 + 16 * place + digit)


def _tag_places() -> normalizers.Normalizer:
    """Returns the normalizer that replaces digits by tagged ones."""
    # From the highest place down: the pattern counts plain digits to the right.
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(f"{digit}(?=[0-9]{{{place}}}(?![0-9]))"), tagged_digit(digit, place))
            for place in reversed(TAGGED_PLACES)
            for digit in range(10)
        ]
    )


def _training_texts(seed: int, documents: int) -> list[str]:
    """Generates the texts that the BPE is trained on."""
    rng = random.Random(f"tokenizer-{seed}")
    texts = []
    for number in range(documents):
        # The tasks in turn: language has more words to learn than its share of the training text would show.
        document = (arithmetic_document, sentiment_document, refusal_document)[number % 3](rng, 4)
        texts += [document.prefix, *(text for pair in document.questions for text in pair)]
    # Fixed strings and numbers already have tokens and would only distort the counts.
    for fixed in FIXED_STRINGS:
        texts = [text.replace(fixed, "\n") for text in texts]
    return [re.sub("[0-9]+", "0", text) for text in texts]


def _untrained_tokenizer() -> Tokenizer:
    """Returns a BPE tokenizer without merges that tags digits and splits digits and symbols into characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _tag_places()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            # A new symbol is copied character by character, whatever follows it.
            pre_tokenizers.Split(Regex(f" ?[{re.escape(SYMBOL_CHARACTERS)}]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    untag = [decoders.Replace(tagged_digit(digit, place), str(digit)) for digit, place in TAGGED_DIGITS]
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), *untag])
    return tokenizer


def build_tokenizer(seed: int, vocab: int, documents: int) -> PreTrainedTokenizerFast:
    """Trains a BPE tokenizer on generated documents.

    Args:
      seed: of the documents.
      vocab: number of tokens, fixed strings, special tokens and tagged digits included.
      documents: number of documents to train on.
    """
    tokenizer = _untrained_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(FIXED_STRINGS) - len(TAGGED_DIGITS),
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(seed, documents), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in FIXED_STRINGS])
    tokenizer.add_tokens([AddedToken(tagged_digit(*pair), normalized=True) for pair in TAGGED_DIGITS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
