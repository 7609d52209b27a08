"""rdjax: rule distillation (arXiv 2311.08883) for Flax language models.

Shape letters, used as suffixes of array names everywhere (`hidden_BTD`):

    B batch rows            T tokens of a row        S key/value slots a query may look at
    P prediction positions  Q aligned hidden positions (response, or the shared tail)
    L layers                D model width            F feed-forward width    V vocabulary
    N query heads           K key-value heads        G = N / K               H head width
    R LoRA rank             A accumulation steps      M members trained side by side
    C tokens of a prefix that all rows share
"""

import os

# transformers serves tokenizers here; its advice to install PyTorch would only confuse.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
