"""The decoder against states and logits that transformers computed (tests/parity/make_golden.py)."""

import pathlib

import numpy as np
import pytest

from tests import tiny

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TOLERANCE = 2e-4


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_states_and_logits(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    decoder = tiny.random_decoder(tiny.CONFIGS[name], seed=int(golden["seed"]))
    out = tiny.forward(decoder, golden["tokens_BT"], golden["lengths_B"].tolist())
    rows, at_BP = [[0], [1]], golden["at_BP"]
    np.testing.assert_allclose(out.inputs_LBQD[:, rows, at_BP], golden["inputs_LBPD"], atol=TOLERANCE)
    np.testing.assert_allclose(out.final_BPD[rows, at_BP], golden["final_BPD"], atol=TOLERANCE)
    logits_BPV = decoder.logits(out.final_BPD[rows, at_BP])
    np.testing.assert_allclose(logits_BPV, golden["logits_BPV"], atol=TOLERANCE)
