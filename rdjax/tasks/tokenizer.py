"""A small byte-level BPE tokenizer for the embedded model, trained on rule documents."""

import random

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rdjax.data import templates
from rdjax.tasks.documents import DEMOS_LEAD, random_document

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


def build_tokenizer(seed: int, vocab: int, documents: int) -> PreTrainedTokenizerFast:
    """Trains a BPE of `vocab` tokens (fixed strings included) on generated documents; digits stand alone."""
    rng = random.Random(f"tokenizer-{seed}")
    texts = []
    for _ in range(documents):
        document = random_document(rng, hard=True, questions=2)
        texts += [document.prefix, *(question for question, _ in document.questions)]
    for fixed in FIXED_STRINGS:
        texts = [text.replace(fixed, "\n") for text in texts]
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(FIXED_STRINGS),
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in FIXED_STRINGS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
