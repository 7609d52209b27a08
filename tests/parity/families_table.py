"""Prints how far every family is from transformers and peft, as the table of docs/families.md.

python -m tests.parity.families_table
"""

import json
import pathlib
import tempfile

import numpy as np
import peft
import torch
from flax import nnx
from tabulate import tabulate

from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.lora import merge_adapter, scaled_adapter
from rdjax.models.peft_files import save_adapter
from rdjax.models.weights import save_params
from tests import tiny
from tests.distillation.case import SHARED, SPEC, Case, loss_and_grad, make_update, random_adapter, random_pairs
from tests.parity import reference
from tests.parity.test_distill import adapter_gradient, torch_loss
from tests.parity.test_generation import PROMPTS, load_both, theirs
from tests.parity.test_transformers import LENGTHS

HEADERS = ["config", "model_type", "states", "logits", "equal tokens", "loss", "gradients", "adapter in peft", "merged"]


def difference(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())


def compare(name: str, folder: pathlib.Path) -> list:
    """Returns a row of the table: the largest differences, absolute of states and logits, relative of the others."""
    fields = tiny.CONFIGS[name]
    ours, model = load_both(name, folder)
    decoder = nnx.merge(ours.graph, ours.base)
    tokens_BT = tiny.random_tokens(len(LENGTHS), max(LENGTHS))
    real_BT = tiny.segments_of(LENGTHS, max(LENGTHS)).astype(bool)
    expected = reference.forward(model, tokens_BT, real_BT)
    out = tiny.forward(decoder, tokens_BT, LENGTHS)
    states = max(
        difference(out.inputs_LBQD[:, real_BT], expected.inputs_LBTD[:, real_BT]),
        difference(out.final_BPD[real_BT], expected.final_BTD[real_BT]),
    )
    logits = difference(decoder.logits(out.final_BPD)[real_BT], expected.logits_BTV[real_BT])
    made = generate(ours, None, 1.0, PROMPTS, Decoding(64, ignore_eos=True), batch_size=4)
    pairs = [(ids, theirs(model, prompt, [-1], 1, 64)) for prompt, (ids, _) in zip(PROMPTS, made, strict=True)]
    equal = sum(a == b for left, right in pairs for a, b in zip(left, right, strict=True))
    case, adapter = Case(ours.graph, ours.base, ours.config), random_adapter(ours.config)
    save_adapter(folder / "adapter", adapter, ours.config, SPEC, str(folder))
    tuned = peft.PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
    (loss, _), gradient = loss_and_grad(case, adapter, make_update(random_pairs(), SHARED))
    their_loss = torch_loss(tuned, random_pairs(), SHARED, hidden_weight=2.44)
    their_loss.backward()
    their_gradient = adapter_gradient(tuned, ours.config, adapter)
    gradients = max(
        difference(ab[part], their_gradient[path][part]) / np.abs(their_gradient[path][part]).max()
        for path, ab in gradient.items()
        for part in ab
    )
    adapted = decoder.logits(tiny.forward(decoder, tokens_BT, adapter=scaled_adapter(adapter, SPEC.scale)).final_BPD)
    with torch.no_grad():
        in_peft = tuned(torch.tensor(tokens_BT, dtype=torch.long)).logits.numpy()
    merged = folder / "merged"
    merged.mkdir()
    (merged / "config.json").write_text(json.dumps(fields))
    params = merge_adapter(nnx.to_pure_dict(nnx.state(tiny.load_decoder(folder))), adapter, SPEC.scale)
    save_params(merged, ours.config, params, np.float32, folder)
    of_merged = reference.forward(reference.load(merged), tokens_BT, np.ones_like(real_BT)).logits_BTV
    scale = np.abs(in_peft).max()
    loss_error = abs(float(loss) - their_loss.item()) / their_loss.item()
    errors = (states, logits, loss_error, gradients, difference(adapted, in_peft) / scale)
    errors = [f"{error:.0e}" for error in (*errors, difference(adapted, of_merged) / scale)]
    return [name, fields["model_type"], *errors[:2], f"{equal} of {64 * len(PROMPTS)}", *errors[2:]]


def main() -> None:
    rows = []
    for name in tiny.CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(name, pathlib.Path(folder)))
    print(tabulate(rows, HEADERS, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
