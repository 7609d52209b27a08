"""Writes the page of the configuration from rdjax/defaults.py when the site is built, and fits links to the site."""

import ast
import html
import pathlib
import re
from typing import Any

DEFAULTS = pathlib.Path(__file__).parents[1] / "rdjax" / "defaults.py"
HEAD = """# Configuration

Every field of a run but `model.architecture` ([plan](plan.md)) with its default, from `rdjax/defaults.py`. On the
command line: `--config.<field>=<value>`; in a config file: `config.<field> = <value>`; from Python:
`rdjax.distill(..., <section>__<field>=<value>)`.
`configs/rule.py` sets {rule}.

"""


def configuration_page() -> str:
    """Returns the page: a table for each section, with the comments of the fields."""
    source = DEFAULTS.read_text(encoding="utf-8")
    lines, rows, tree = source.splitlines(), {}, ast.parse(source)
    for field, node in assignments(tree, "get_config").items():
        section, _, _ = field.rpartition(".")
        words = html.escape(comment_of(lines, node.lineno - 1), quote=False).replace("|", "\\|")
        rows.setdefault(section or "the run", []).append(f"| `{field}` | `{default_of(node.value)}` | {words} |")
    parts = [
        f"## {section}\n\n| field | default | |\n|---|---|---|\n" + "\n".join(part) for section, part in rows.items()
    ]
    changed = assignments(tree, "rule_config").items()
    rule = ", ".join(f"`{field}={default_of(node.value)}`" for field, node in changed)
    return HEAD.format(rule=rule) + "\n\n".join(parts) + "\n"


def assignments(tree: ast.Module, name: str) -> dict[str, ast.Assign]:
    """Returns what a function of this name assigns to the fields of its config, new sections left out."""
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    found = {ast.unparse(node.targets[0]): node for node in function.body if isinstance(node, ast.Assign)}
    return {
        target.removeprefix("config."): node
        for target, node in found.items()
        if target.startswith("config.") and not ast.unparse(node.value).endswith("ConfigDict()")
    }


def comment_of(lines: list[str], number: int) -> str:
    """Returns the comment of a field: the lines before it, and what stands behind it."""
    first = number
    while lines[first - 1].strip().startswith("#"):
        first -= 1
    behind = lines[number].partition("  # ")[2]
    return " ".join([*(line.strip().lstrip("# ") for line in lines[first:number]), *([behind] if behind else [])])


def default_of(value: ast.expr) -> str:
    """Returns the default of a field as a reader would write it."""
    if isinstance(value, ast.Call):  # FieldReference("auto", ...), placeholder(float)
        first = value.args[0]
        return first.value if isinstance(first, ast.Constant) else "none"
    text = ast.unparse(value)
    return '""' if text == "''" else text.replace("'", '"')


def on_pre_build(config: Any) -> None:
    """Writes the page before MkDocs reads the folder."""
    path = pathlib.Path(config["docs_dir"]) / "configuration.md"
    text = configuration_page()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Names files of the repository that the site does not have, in place of links to them."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#\s]+)[^)\s]*\)", named_file, markdown)


def named_file(link: re.Match[str]) -> str:
    """Returns the text of a link with the path of its file behind it, unless the text is that path already."""
    text, path = link[1], link[2]
    return text if path in text else f"{text} (`{path}`)"
