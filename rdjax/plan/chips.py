"""Lists the published figures of TPU chips and describes their topologies to the compiler, without a TPU."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence

import jax

# Public JAX has no other way to a compiler for devices that are not attached.
from jax.experimental import topologies

from rdjax.errors import UserError

# Without these variables libtpu first waits for a metadata server that only TPU machines have.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Holds the published figures of one device of a topology.

    Attributes:
      flops: bfloat16 FLOPs a second.
      memory: bytes of HBM.
      bandwidth: bytes a second between HBM and the cores.
      network: bytes a second in one direction over the links between chips.
    """

    flops: float
    memory: float
    bandwidth: float
    network: float


# Google Cloud's pages on each version (docs.cloud.google.com/tpu/docs/v5e and so on). A tpu7x chip is two devices.
CHIPS = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
    "tpu7x": Chip(2307e12 / 2, 96 * 2**30, 7380e9 / 2, 600e9 / 2),
}

THREE_SIZES = ("v5p", "tpu7x")  # chips whose topologies have three sizes; those of the others have two


def find_chip(topology: str) -> Chip:
    """Returns the chip that a topology such as "v5e:4x4" consists of.

    Raises:
      UserError: the name is malformed, or its chip is unknown.
    """
    name, _, sizes = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+){2}" if name in THREE_SIZES else r"\d+x\d+", sizes):
        forms = ", ".join(f"{chip}:<a>x<b>" + ("x<c>" if chip in THREE_SIZES else "") for chip in CHIPS)
        raise UserError(f"--topology: {topology!r} is unknown; accepted: {forms}")
    return CHIPS[name]


def topology_devices(topology: str, slices: int) -> Sequence[jax.Device]:
    """Returns the devices of `slices` slices of a topology, as targets for the compiler.

    Raises:
      UserError: the topology does not exist, or the compiler for TPUs is not installed.
    """
    find_chip(topology)
    for name, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    one_chip = math.prod(map(int, topology.partition(":")[2].split("x"))) == 1
    options = {"chips_per_host_bounds": (1, 1, 1)} if one_chip else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices, **options
        ).devices
    except Exception as error:  # jaxlib raises bare runtime errors
        message = " ".join(str(error).split())
        if any(words in message for words in ("libtpu", "not installed", "Unable to initialize")):
            raise UserError(
                f"--topology: no compiler for TPUs ({message}); pip install 'rdjax[tpu]' brings it"
            ) from None
        raise UserError(f"--topology: {topology} is no topology of this chip ({message})") from None
