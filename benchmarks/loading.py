"""Measures the memory that loading a checkpoint needs beyond the weights, in two processes of four CPU devices each.

    python -m benchmarks.loading [--gigabytes=2] [--out=benchmarks/results/loading.json]

A random Llama in float32 is written and then loaded by both at once, each onto half of a mesh of fsdp 4 x tensor 2. The
figure is the highest RssAnon during loading (memory that no file backs, so pages of the checkpoint do not count), minus
RssAnon before, minus the process's own shards. Compare it with the checkpoint's largest tensor.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_dict
from safetensors.numpy import save_file

from rdjax.models.families.registry import decoder_config_from_hf
from rdjax.models.sharding import param_shardings
from rdjax.models.tensor_files import INDEX
from rdjax.models.weights import abstract_params, checkpoint_shapes, load_params
from rdjax.parallel.mesh import make_mesh

_GIGABYTES = flags.DEFINE_float("gigabytes", 2.0, "Of the checkpoint, about.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
_FOLDER = flags.DEFINE_string("folder", None, "Of one process: the checkpoint.")
_PART = flags.DEFINE_integer("part", None, "Of one process: its number.")
_PORT = flags.DEFINE_integer("port", None, "Of one process: the coordinator's.")

MIB = 2**20


def fields(gigabytes: float) -> dict[str, object]:
    """Returns config.json of a Llama of about this size in float32: 16 layers, a vocabulary of 32,000."""
    width = round((gigabytes * 1e9 / 4 / (16 * 12)) ** 0.5 / 128) * 128
    return {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": width,
        "intermediate_size": 8 * width // 3 // 128 * 128,
        "num_hidden_layers": 16,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 128,
    }


def write_checkpoint(folder: pathlib.Path, config) -> int:
    """Writes random weights, one file a layer; returns the bytes of the largest tensor."""
    random, largest, files = np.random.default_rng(0), 0, {}
    shapes = {}
    for name, shape in checkpoint_shapes(config).items():
        layer = re.search(r"layers\.(\d+)", name)
        shapes.setdefault(f"layer-{layer[1]}.safetensors" if layer else "rest.safetensors", {})[name] = shape
    for file, tensors in shapes.items():
        made = {name: random.standard_normal(shape, np.float32) for name, shape in tensors.items()}
        largest = max(largest, *(array.nbytes for array in made.values()))
        save_file(made, folder / file)
        files |= dict.fromkeys(made, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))
    return largest


def anonymous_bytes() -> int:
    """Reads RssAnon of this process."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"^RssAnon:\s*(\d+) kB", status, re.MULTILINE)[1])


def load_one() -> None:
    """Loads the checkpoint as one of the two processes; prints its figures as JSON."""
    jax.distributed.initialize(f"127.0.0.1:{_PORT.value}", 2, _PART.value)
    config = decoder_config_from_hf(fields(_GIGABYTES.value), "benchmark")
    mesh = make_mesh(config_dict.ConfigDict({"data": 1, "fsdp": 4, "tensor": 2}))
    _, params = abstract_params(config, np.float32)
    before, highest, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], anonymous_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    loaded = load_params(pathlib.Path(_FOLDER.value), config, np.float32, param_shardings(mesh, params))
    jax.block_until_ready(loaded)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    own = sum(shard.data.nbytes for leaf in jax.tree.leaves(loaded) for shard in leaf.addressable_shards)
    print(json.dumps({"own": own, "beside": highest[0] - before - own, "seconds": seconds}))


def main(argv: list[str]) -> None:
    del argv
    if _FOLDER.value:
        load_one()
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        config = decoder_config_from_hf(fields(_GIGABYTES.value), "benchmark")
        largest = write_checkpoint(pathlib.Path(folder), config)
        size = sum(path.stat().st_size for path in pathlib.Path(folder).glob("*.safetensors"))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-m", "benchmarks.loading", f"--folder={folder}", f"--port={port}"]
        command.append(f"--gigabytes={_GIGABYTES.value}")
        flags_given = "--xla_force_host_platform_device_count=4"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags_given}
        running = [
            subprocess.Popen([*command, f"--part={part}"], env=environment, stdout=subprocess.PIPE, text=True)
            for part in range(2)
        ]
        figures = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    print(f"checkpoint {size / MIB:.0f} MiB, its largest tensor {largest / MIB:.0f} MiB")
    for part, each in enumerate(figures):
        own, beside = each["own"] / MIB, each["beside"] / MIB
        print(
            f"process {part}: own shards {own:.0f} MiB; beside them at most {beside:.0f} MiB; {each['seconds']:.1f} s"
        )
    if _OUT.value:
        content = {"checkpoint_bytes": size, "largest_tensor_bytes": largest, "processes": figures}
        pathlib.Path(_OUT.value).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
