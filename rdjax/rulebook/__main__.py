"""Trains an embedded rulebook model: `python -m rdjax.rulebook --config=configs/rulebook.py --workdir=...`."""

import shutil

from absl import flags

from rdjax.rulebook.train import train
from rdjax.run import cli, run_flags

_OUT = flags.DEFINE_string("out", None, "Folder to copy the finished model to; it is in <workdir>/model in any case.")


def main(argv: list[str]) -> None:
    """Trains the model and copies it to --out."""
    cli.no_arguments(argv)
    folder = train(run_flags.config("configs/rulebook.py"), run_flags.workdir())
    if _OUT.value:
        shutil.copytree(folder, _OUT.value, dirs_exist_ok=True)
        print(f"copied to {_OUT.value}")


if __name__ == "__main__":
    cli.run(main)
