"""Will it fit, and how long can it take? `python -m rdjax.plan --config=configs/llama2_7b.py --topology=v5e:4x4`.

Compiles the teacher's pass and the training step of a config ahead of time, for a TPU topology or for the devices that
are here; no weights, tokenizer or data are read where the config carries the model's architecture. Exit status 1: it
does not fit.
"""

import pathlib
import sys

import jax
from absl import flags

from rdjax.config import check_config
from rdjax.errors import UserError
from rdjax.plan.chips import chip_of, describe
from rdjax.plan.estimate import make_plan, show
from rdjax.run import cli, experiment
from rdjax.storage.files import write_json

_TOPOLOGY = flags.DEFINE_string("topology", "", "<chip>:<shape>, e.g. v5e:4x4; without one, the devices that are here.")
_SLICES = flags.DEFINE_integer("slices", 1, "How many slices of that topology.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Let the compiler try less: sooner done, and memory is near, not exact.")
# allow_override: a process may know several commands that have one.
_OUT = flags.DEFINE_string("out", None, "Where the plan goes as JSON.", allow_override=True)


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    config = experiment.config("configs/llama2_7b.py")
    check_config(config)
    if not config.task.k:
        raise UserError("config.task.k = 0 takes all samples of a folder; a plan wants their number")
    if _SLICES.value > 1 and not _TOPOLOGY.value:
        raise UserError(f"--slices={_SLICES.value} is of a topology; give one, e.g. --topology=v5e:4x4")
    if _TOPOLOGY.value:
        chip, devices = chip_of(_TOPOLOGY.value), describe(_TOPOLOGY.value, _SLICES.value)
        memory = chip.memory
    else:
        chip, devices = None, None
        memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    plan = make_plan(config, devices, chip, memory, _QUICK.value)
    plan = {"topology": _TOPOLOGY.value, "slices": _SLICES.value, "quick": _QUICK.value, **plan}
    print(show(plan))
    if _OUT.value:
        write_json(pathlib.Path(_OUT.value), plan)
    if not plan["fits"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
