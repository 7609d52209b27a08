"""Plans a run: `python -m rdjax.plan --config=configs/llama2_7b.py --topology=v5e:4x4`.

Says whether the run fits the devices and how long an update takes at least. Compiles the training step and the
teacher's pass ahead of time, for a TPU topology or for the local devices. Reads no weights, tokenizer or data, and no
file of the model if the config carries `model.architecture`. Exits with status 1 if the run does not fit.
"""

import sys
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import config_dict

from rdjax.config import check_config
from rdjax.errors import UserError
from rdjax.plan.chips import Chip, find_chip, topology_devices
from rdjax.plan.estimate import make_plan, plan_text
from rdjax.run import cli, run_flags
from rdjax.storage.files import user_path, write_json

_TOPOLOGY = flags.DEFINE_string("topology", "", "<chip>:<shape>, e.g. v5e:4x4; default: the local devices.")
_SLICES = flags.DEFINE_integer("slices", 1, "Number of slices of that topology.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Compile with less effort: faster, and memory is approximate.")
# allow_override: a process may import several commands that define this flag.
_OUT = flags.DEFINE_string("out", None, "File to write the plan to, as JSON.", allow_override=True)


def check_flags(config: config_dict.ConfigDict) -> None:
    """Checks the config and the flags against each other.

    Raises:
      UserError: a field or flag has a value that cannot be planned.
    """
    check_config(config)
    if _SLICES.value > 1 and not _TOPOLOGY.value:
        raise UserError(f"--slices={_SLICES.value} is of a topology; give one, e.g. --topology=v5e:4x4")


def find_devices() -> tuple[Sequence[jax.Device] | None, Chip | None, float | None]:
    """Returns the devices to compile for (None: the local ones), their figures, and the bytes of memory of one."""
    if not _TOPOLOGY.value:
        return None, None, (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    chip = find_chip(_TOPOLOGY.value)
    # Programs for devices that are not attached cannot be read back from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    return topology_devices(_TOPOLOGY.value, _SLICES.value), chip, chip.memory


def main(argv: list[str]) -> None:
    """Prints the plan and writes it to --out."""
    cli.no_arguments(argv)
    config = run_flags.config("configs/llama2_7b.py")
    check_flags(config)
    devices, chip, memory = find_devices()
    plan = make_plan(config, devices, chip, memory, _QUICK.value)
    plan = {"topology": _TOPOLOGY.value, "slices": _SLICES.value, "quick": _QUICK.value, **plan}
    print(plan_text(plan))
    if _OUT.value:
        write_json(user_path(_OUT.value), plan)
    if not plan["fits"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
