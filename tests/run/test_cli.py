"""Tests where compiled programs are stored."""

import jax
import pytest

from rdjax.run import cli


@pytest.fixture
def settings():
    """Yields JAX's config without a cache of compiled programs, and restores it."""
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_among_the_users_caches(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli.keep_compiled_programs()
    assert settings.jax_compilation_cache_dir.startswith(str(tmp_path / "rdjax"))
    assert 0 < settings.jax_compilation_cache_max_size < 2**40


def test_a_cache_that_the_user_chose_stays(settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    cli.keep_compiled_programs()
    assert settings.jax_compilation_cache_dir == str(tmp_path / "own")


def test_machines_with_other_features_keep_apart(tmp_path, monkeypatch):
    """A program for one CPU may not run on another that shares the home folder."""
    names = set()
    for features in ("fpu sse avx", "avx sse fpu", "fpu sse"):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {features}\n")
        monkeypatch.setattr(cli, "CPU_INFO", tmp_path / "cpuinfo")
        names.add(cli.machine_name())
    assert len(names) == 2
