"""Writes one self-contained page for a run or a sweep: `python -m rdjax.report --workdir=runs/quickstart`.

With `--figures=<folder>` the page's figures are written there as well, one SVG file each.
"""

from absl import flags

from rdjax.report.page import write_page
from rdjax.run import cli, run_flags
from rdjax.storage.files import user_path

_FIGURES = flags.DEFINE_string("figures", None, "Folder for the page's figures as SVG files; default: none.")


def main(argv: list[str]) -> None:
    """Writes the page of --workdir."""
    cli.no_arguments(argv)
    figures = user_path(_FIGURES.value) if _FIGURES.value else None
    print(f"wrote {write_page(run_flags.workdir(), figures)}")


if __name__ == "__main__":
    cli.run(main)
