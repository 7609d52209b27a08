"""Writes tests/golden/*.npz from transformers, for tests that run without torch.

python -m tests.parity.make_golden
"""

import pathlib
import tempfile

import numpy as np

from tests import tiny
from tests.parity import reference

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SEED = 7
LENGTHS_B = np.array([40, 23])
AT_BP = np.array([[0, 17, 39], [1, 12, 22]])  # real positions, one beyond Llama 3's original context of 32


def golden(fields) -> dict[str, np.ndarray]:
    tokens_BT = tiny.random_tokens(len(LENGTHS_B), LENGTHS_B.max(), seed=SEED)
    with tempfile.TemporaryDirectory() as folder:
        model = reference.load(tiny.write_random_checkpoint(pathlib.Path(folder), fields, SEED))
    states = reference.forward(model, tokens_BT, tiny.segments_of(LENGTHS_B, tokens_BT.shape[1]))
    rows = np.arange(len(AT_BP))[:, None]
    return {
        "seed": np.array(SEED),
        "tokens_BT": tokens_BT,
        "lengths_B": LENGTHS_B,
        "at_BP": AT_BP,
        "inputs_LBPD": states.inputs_LBTD[:, rows, AT_BP],
        "final_BPD": states.final_BTD[rows, AT_BP],
        "logits_BPV": states.logits_BTV[rows, AT_BP],
    }


def main():
    GOLDEN.mkdir(exist_ok=True)
    for name, fields in tiny.CONFIGS.items():
        np.savez_compressed(GOLDEN / f"{name}.npz", **golden(fields))


if __name__ == "__main__":
    main()
