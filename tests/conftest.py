"""Shared by all tests: eight fake CPU devices, and the published data where there is a copy of it."""

import os
import pathlib

import jax
import pytest

# Before any use of jax: the number of devices is fixed with the first array.
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def published_data() -> pathlib.Path:
    """The folder of the published task files, named by the environment variable RDJAX_PUBLISHED_DATA."""
    folder = os.environ.get("RDJAX_PUBLISHED_DATA")
    if not folder:
        pytest.skip("RDJAX_PUBLISHED_DATA is not set")
    return pathlib.Path(folder)
