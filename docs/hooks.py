"""Writes the page of the configuration from rdjax/defaults.py when the site is built."""

import ast
import html
import pathlib
from typing import Any

DEFAULTS = pathlib.Path(__file__).parents[1] / "rdjax" / "defaults.py"
HEAD = """# Configuration

Every field of a run with its default, from `rdjax/defaults.py`. On the command line: `--config.<field>=<value>`; in a
config file: `config.<field> = <value>`; from Python: `rdjax.distill(..., <section>__<field>=<value>)`.
`configs/rule.py` sets `auto` for `task.template`, `task.responses` and `task.inputs`, `lora.rank=8` and `lora.alpha=8`,
`loss.hidden_weight=30`, `loss.hidden_positions=shared`, `loss.retain_hidden_weight=10`, and
`loss.consistency_weight=0.5`.

"""


def configuration_page() -> str:
    """Returns the page: a table for each section, with the comments of the fields."""
    source = DEFAULTS.read_text(encoding="utf-8")
    lines, rows = source.splitlines(), {}
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    for node in function.body:
        name = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""
        if not name.startswith("config.") or ast.unparse(node.value).endswith("ConfigDict()"):
            continue
        section, _, _ = name.removeprefix("config.").rpartition(".")
        words = html.escape(comment_of(lines, node.lineno - 1), quote=False).replace("|", "\\|")
        row = f"| `{name.removeprefix('config.')}` | `{default_of(node.value)}` | {words} |"
        rows.setdefault(section or "the run", []).append(row)
    parts = [
        f"## {section}\n\n| field | default | |\n|---|---|---|\n" + "\n".join(part) for section, part in rows.items()
    ]
    return HEAD + "\n\n".join(parts) + "\n"


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
