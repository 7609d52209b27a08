"""Computes how the floor of a step scales with the number of chips: a model, not a measurement.

    python -m benchmarks.plan_scaling [--out=benchmarks/results/plan_scaling.json]

All figures come from `rdjax.plan.flops.step_floor` and the published figures of the chips; nothing is run or compiled.
Models, lengths and meshes are those of configs/llama2_7b.py and configs/llama3_70b.py. No run can be faster than a
floor: it assumes compute, memory and network at their published rates, all at once and without latency.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_dict

from configs import llama2_7b, llama3_70b
from rdjax.errors import UserError
from rdjax.models.families.registry import decoder_config_from_hf
from rdjax.models.lora import lora_spec
from rdjax.parallel.mesh import mesh_shape
from rdjax.plan.chips import CHIPS
from rdjax.plan.flops import Work, step_floor, step_flops

_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")

COUNTS = (4, 8, 16, 32, 64, 128, 256)
CASES = (
    ("Llama-2-7B", llama2_7b, "v5e", 4),
    ("Llama-3-70B", llama3_70b, "v5p", 4),
    ("Llama-3-70B", llama3_70b, "v5e", 64),
)
PAIRS_A_CHIP = (1, 4)  # weak scaling
PAIRS = 64  # strong scaling


@dataclasses.dataclass(frozen=True)
class Reckoned:
    """Holds the floor of an update.

    Attributes:
      pairs: pairs of the update.
      seconds: the floor.
      bound: what determines it: "compute", "memory" or "network".
      efficiency: FLOPs of the pairs as a share of what the chips could do in that time.
    """

    pairs: int
    seconds: float
    bound: str
    efficiency: float

    def __str__(self) -> str:
        return f"{1e3 * self.seconds:.0f} ms, {self.bound}, {self.efficiency:.2f}"


def reckon(config: config_dict.ConfigDict, chip_name: str, mesh: tuple[int, ...], pairs: int) -> Reckoned:
    """Computes the floor of an update of `pairs` pairs; rows without a pair are padding and are computed too."""
    decoder = decoder_config_from_hf(config.model.architecture.to_dict(), "config.model.architecture")
    plan, chip = config.plan, CHIPS[chip_name]
    spec = lora_spec(config.lora, decoder)
    data, fsdp, tensor = mesh

    def work(count: int) -> Work:
        length, predicted = plan.prompt_tokens + plan.response_tokens, plan.response_tokens + 1
        return Work([length] * count, predicted * count, config.model.remat, accumulation=1)

    padded = -(-pairs // (data * fsdp)) * data * fsdp
    floor = step_floor(decoder, spec, work(padded), chip, mesh, jnp.dtype(jnp.bfloat16).itemsize)
    parts = dataclasses.asdict(floor)
    could = data * fsdp * tensor * chip.flops * floor.seconds
    return Reckoned(
        pairs, floor.seconds, max(parts, key=parts.__getitem__), step_flops(decoder, spec, work(pairs)) / could
    )


def table(name: str, config: config_dict.ConfigDict, chip: str, least: int) -> list[dict[str, Any]]:
    """Prints a table in Markdown and returns its figures."""
    made = []
    for count in COUNTS:
        try:
            mesh = mesh_shape(config.mesh, count)
        except UserError:  # fewer chips than the tensor axis has
            continue
        if count >= least:
            weak = [reckon(config, chip, mesh, each * count) for each in PAIRS_A_CHIP]
            made.append({"chips": count, "mesh": mesh, "weak": weak, "strong": reckon(config, chip, mesh, PAIRS)})
    print(f"\n{name} on {chip} (a model, not a measurement)\n")
    head = [
        "chips",
        "data x fsdp x tensor",
        *(f"pairs a chip: {each}" for each in PAIRS_A_CHIP),
        f"pairs: {PAIRS}",
        "faster",
    ]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in made:
        faster = made[0]["strong"].seconds / row["strong"].seconds
        sizes = " x ".join(map(str, row["mesh"]))
        print("|", *(f"{cell} |" for cell in [row["chips"], sizes, *row["weak"], row["strong"], f"{faster:.1f}"]))
    return [
        row | {"weak": [dataclasses.asdict(each) for each in row["weak"]], "strong": dataclasses.asdict(row["strong"])}
        for row in made
    ]


def main(argv: list[str]) -> None:
    del argv
    print("A cell: the floor of an update, what bounds it, and the share of the chips' FLOPs that it could use.")
    made = {f"{name} on {chip}": table(name, source.get_config(), chip, least) for name, source, chip, least in CASES}
    if _OUT.value:
        path = pathlib.Path(_OUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"kind": "a model, not a measurement", "tables": made}, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
