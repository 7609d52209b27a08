"""A module imports only what stands before it on the way of the data (DESIGN)."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

import rdjax

ROOT = pathlib.Path(rdjax.__file__).parent

# From the front of the way to its end; every module under rdjax/ stands here once.
ORDER = (
    "errors",
    "processes",
    "files",
    "config",
    "metrics",
    "checkpoint",
    "cli",
    "experiment_flags",
    "tasks.names",
    "tasks.arithmetic",
    "tasks.sentiment",
    "tasks.refusal",
    "data.templates",
    "tasks.documents",
    "tasks.tokenizer",
    "data.generated",
    "data.tasks",
    "data.pairs",
    "data.batches",
    "mesh",
    "models.config",
    "models.rows",
    "models.attention",
    "models.layers",
    "models.decoder",
    "models.weights",
    "models.lora",
    "sharding",
    "models.load",
    "distill.losses",
    "distill.teacher",
    "distill.optimizer",
    "distill.step",
    "distill.signals",
    "distill.updates",
    "distill.stage",
    "generation",
    "judges",
    "evaluation",
    "workdir",
    "figures",
    "run_page",
    "sweep_page",
    "page",
    "train",
    "chips",
    "flops",
    "plan",
    "sweep",
    "report",
    "generate",
    "export",
    "rulebook",
)
PACKAGES = ("", "data", "distill", "models", "tasks")
FOREIGN = ("torch", "peft")

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imports(path: pathlib.Path) -> Iterator[str]:
    """What a file imports anywhere in it, `from a import b` as "a" and "a.b"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path: pathlib.Path) -> set[str]:
    """The modules of rdjax among a file's imports."""
    return {name.removeprefix("rdjax.") for name in imports(path)} & set(ORDER)


def test_every_module_has_its_place():
    assert set(MODULES) == {*ORDER, *PACKAGES}
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_what_stands_before_it(module):
    before = ORDER[: ORDER.index(module)]
    assert own(MODULES[module]) <= set(before)


def test_packages_import_none_of_their_modules():
    assert not any(own(MODULES[package]) for package in PACKAGES)


def test_imports_are_seen():
    assert own(MODULES["data.pairs"]) == {"data.templates", "errors"}
    assert "cli" in own(MODULES["train"])


@pytest.mark.parametrize("module", MODULES)
def test_the_core_knows_no_torch(module):
    assert not {name.split(".")[0] for name in imports(MODULES[module])} & set(FOREIGN)
