"""Sets up all tests: eight fake CPU devices, quick compilation, a tiny model, the published data if there is a copy."""

import os
import pathlib

import jax
import pytest

from tests import tiny

# Before any use of jax: flags and the number of devices are fixed with the first array. Nearly all the time of
# these tests is compilation, and unoptimised programs compile in half of it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Nothing of the tests stays in the user's cache, nor does what lies there help them; also in the commands they start.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Lets go of a file's compiled programs.

    Each holds mappings of memory for its code, of which Linux gives a process 65,530 (vm.max_map_count); one that asks
    for more dies of a segmentation fault.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> pathlib.Path:
    """Writes a tiny Llama of random weights with its tokenizer; the prompts of the generated tasks fit its context."""
    folder = tmp_path_factory.mktemp("model")
    tiny.write_random_checkpoint(folder, tiny.LLAMA2 | {"max_position_embeddings": 4096})
    return tiny.write_tokenizer(folder)


@pytest.fixture
def published_data() -> pathlib.Path:
    """The folder of the published task files, named by the environment variable RDJAX_PUBLISHED_DATA."""
    folder = os.environ.get("RDJAX_PUBLISHED_DATA")
    if not folder:
        pytest.skip("RDJAX_PUBLISHED_DATA is not set")
    return pathlib.Path(folder)
