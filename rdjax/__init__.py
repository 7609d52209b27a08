"""Moves written rules into the parameters of Flax language models (rule distillation, arXiv 2311.08883).

Shape letters, used as suffixes of array names everywhere (`hidden_BTD`):

    B batch rows                T tokens of a row           S keys that a query may attend to
    E sequences in a row        U longest sequence          C tokens of a shared prefix
    P prediction positions      Q aligned positions, at which hidden states are compared
    L layers                    D model width               F feed-forward width        V vocabulary
    N query heads               K key-value heads           G = N / K                   H head width
    R LoRA rank                 A micro-batches             M members trained side by side
    W beams                     Y candidates for beams      X axes of rows that were merged into one
    I value heads of delta nets  J width of their values, or of a layer's embeddings of tokens
    Z tokens before a token that their convolutions read

A digit is an axis of that size, a small letter a part of that axis (`student_BpD`).
"""

import os
from typing import Any

# transformers serves tokenizers here; its advice to install PyTorch would only confuse.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Loads `rdjax.distill` when it is first used: it needs all of JAX."""
    if name == "distill":
        from rdjax.api import distill

        return distill
    raise AttributeError(f"module 'rdjax' has no attribute {name!r}")
