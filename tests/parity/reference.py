"""What transformers computes, as numpy arrays; the one place where torch runs a model."""

import pathlib
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


class Reference(NamedTuple):
    inputs_LBTD: np.ndarray
    final_BTD: np.ndarray
    logits_BTV: np.ndarray


def load(folder: pathlib.Path) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    # transformers only warns when weights are missing, and makes some up.
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


@torch.no_grad()
def forward(model: PreTrainedModel, tokens_BT: np.ndarray, real_BT: np.ndarray) -> Reference:
    out = model(
        torch.from_numpy(tokens_BT).long(), attention_mask=torch.from_numpy(real_BT).long(), output_hidden_states=True
    )
    *inputs, final = (states.numpy() for states in out.hidden_states)
    return Reference(np.stack(inputs), final, out.logits.numpy())
