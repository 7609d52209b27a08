"""Sets up all tests: eight fake CPU devices, quick compilation, a tiny model, the published data if there is a copy."""

import os
import pathlib

import jax
import pytest

from tests import tiny

# Before any use of jax: flags and the number of devices are fixed with the first array. Most of the time of these tests
# is compilation: programs without optimisation compile in 0.7 of the time, those without XLA's newer emitter of fusions
# in 0.3. XLA ends the process at a flag that it does not know, and the releases from 0.11 on know no other emitter.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ < (0, 11):
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", QUICK_COMPILATION)
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Nothing of the tests stays in the user's cache, nor does what lies there help them; also in the commands they start.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
jax.config.update("jax_enable_compilation_cache", False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the files with slow tests to the front, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
