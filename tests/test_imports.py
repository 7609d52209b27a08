"""A module imports only what stands before it on the way of the data (DESIGN)."""

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

import rdjax

ROOT = pathlib.Path(rdjax.__file__).parent

# From the front of the way to its end. Within a package only circles are forbidden.
ORDER = (
    "errors",
    "defaults",
    "config",
    "parallel",
    "storage",
    "data",
    "models",
    "generation",
    "distillation",
    "evaluation",
    "run",
    "report",
    "plan",
    "rulebook",
    "commands",
)
# Thin files beside the packages; none imports another.
COMMANDS = ("train", "train_each", "sweep", "generate", "export", "inspect", "evaluate", "init", "playground", "api")
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


def place(module: str) -> int:
    """Returns where a module stands in `ORDER`."""
    first = module.split(".")[0]
    return ORDER.index("commands" if first in COMMANDS else first)


def own(path: pathlib.Path) -> set[str]:
    """The modules of rdjax among a file's imports."""
    return {name.removeprefix("rdjax.") for name in imports(path) if name.startswith("rdjax.")} & set(MODULES)


def test_every_module_has_its_place():
    for module in filter(None, MODULES):
        place(module)


@pytest.mark.parametrize("module", [*filter(None, MODULES)])
def test_a_module_imports_only_what_stands_before_it(module):
    package = module.split(".")[0]
    outside = {other for other in own(MODULES[module]) if other.split(".")[0] != package}
    assert {other for other in outside if place(other) >= place(module)} == set()


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: own(path) - {module} for module, path in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", [module for module, path in MODULES.items() if path.name == "__init__.py"])
def test_packages_import_none_of_their_modules(package):
    # The root loads `rdjax.distill` when it is first used.
    assert own(MODULES[package]) <= ({"api"} if not package else set())


def test_imports_are_seen():
    assert own(MODULES["data.pairs"]) == {"data.chat", "data.templates", "errors"}
    assert "run.cli" in own(MODULES["train"])


@pytest.mark.parametrize("module", MODULES)
def test_the_core_knows_no_torch(module):
    assert not {name.split(".")[0] for name in imports(MODULES[module])} & set(FOREIGN)
