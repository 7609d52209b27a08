"""Distills a written rule into an adapter of a Flax language model (rule distillation, arXiv 2311.08883).

Shape letters, used as suffixes of array names everywhere (`hidden_BTD`); 1 is an axis of size one:

    B batch rows            T tokens of a row        S keys that a query may attend to
    P prediction positions  Q aligned positions      C tokens of a shared prefix
    L layers                D model width            F feed-forward width    V vocabulary
    N query heads           K key-value heads        G = N / K               H head width
    R LoRA rank             A micro-batches          M members trained side by side
    E sequences in a row    U longest sequence       X several axes in one
    W beams of a search     Y candidates for beams
"""

import os

# transformers serves tokenizers here; its advice to install PyTorch would only confuse.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
