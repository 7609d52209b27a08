"""TPU chips by their published figures, and topologies of them without a TPU."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence

import jax

# The only way to a compiler for devices that are not there.
from jax.experimental import topologies

from rdjax.errors import UserError

# Without them libtpu asks a metadata server that only a TPU machine has, for a while and in vain.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device of a topology has.

    Attributes:
      flops: bfloat16 FLOPs a second.
      memory: bytes of HBM.
      bandwidth: of HBM, bytes a second.
      network: of the links between chips, bytes a second in one direction.
    """

    flops: float
    memory: float
    bandwidth: float
    network: float


# Google Cloud's pages on each version (docs.cloud.google.com/tpu/docs/v5e and so on). A tpu7x chip is two devices.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
    "tpu7x": Chip(2307e12 / 2, 96 * 2**30, 7380e9 / 2, 600e9 / 2),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology's name, as "v5e:4x4".

    Raises:
      UserError: the name is none, or its chip is not known.
    """
    name, _, sizes = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", sizes):
        raise UserError(f"--topology: {topology!r} is unknown; accepted: <chip>:<a>x<b>[x<c>] of {', '.join(CHIPS)}")
    return CHIPS[name]


def describe(topology: str, slices: int) -> Sequence[jax.Device]:
    """The devices of so many slices of a topology, to compile for.

    Raises:
      UserError: there is no such topology, or no compiler for TPUs.
    """
    chip_of(topology)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    alone = math.prod(map(int, topology.partition(":")[2].split("x"))) == 1
    options = {"chips_per_host_bounds": (1, 1, 1)} if alone else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices, **options
        ).devices
    except Exception as error:  # jaxlib raises bare runtime errors
        said = " ".join(str(error).split())
        if any(words in said for words in ("libtpu", "not installed", "Unable to initialize")):
            raise UserError(f"--topology: no compiler for TPUs ({said}); pip install 'rdjax[tpu]' brings it") from None
        raise UserError(f"--topology: {topology} is no topology of this chip ({said})") from None
