"""Checks that the pages for users name what exists: links, headings, configs, and the rows of the example."""

import pathlib
import re

import pytest

import rdjax

ROOT = pathlib.Path(rdjax.__file__).parent.parent
EXAMPLE = ROOT / "examples" / "no_health_advice"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "tpu_scripts" / "README.md"]
PAGES += [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "rdjax" / "assets").glob("*/README.md"))]


def anchors(path: pathlib.Path) -> set[str]:
    """Returns the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: pathlib.Path) -> list[str]:
    """Returns the links of a page whose file or heading does not exist; web addresses are not checked."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not link.startswith("http") and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One title\n[a](page.md#one-title) [b](#other) [c](nothing.md) [d](https://example.org)\n")
    assert broken_links(page) == ["#other", "nothing.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configs_of_commands_exist(page):
    names = re.findall(r"--config=(configs/\S+?\.py)", page.read_text(encoding="utf-8"))
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_readme_shows_the_first_row_of_every_example_file():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLE.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        count = "" if path.suffix == ".md" else f"{len(lines)} "
        assert f"| `{path.name}` | `{lines[0]}` | {count}|" in readme


def test_the_readme_has_the_commands_that_it_promises():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "pip install -e '.[test]' && pytest" in lines
    assert (
        "pip install -e . && python -m rdjax.train --config=configs/quickstart.py --workdir=runs/quickstart"
    ) in lines
