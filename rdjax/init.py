"""Starts a rule's folder: `python -m rdjax.init my_rule/`.

Writes a rule to replace, examples of the files that the folder may have, and a README.md that says what each is for.
"""

import contextlib
import pathlib
import shlex

from rdjax.errors import UserError
from rdjax.run import cli
from rdjax.storage.files import copy_folder, making_folder, user_path

ASSETS = pathlib.Path(__file__).parent / "assets" / "new_rule"


def main(argv: list[str]) -> None:
    """Writes the folder and says what to do next."""
    if len(argv) != 1:
        raise UserError("give the name of a new folder: python -m rdjax.init my_rule")
    folder = user_path(argv[0])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; accepted: a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # An empty folder that is there may be the one that the user's shell is in: it stays.
    with contextlib.nullcontext(folder) if folder.exists() else making_folder(folder) as part:
        copy_folder(ASSETS, part)
        readme = part / "README.md"
        text = readme.read_text(encoding="utf-8").replace("my_rule", shlex.quote(str(folder)))
        readme.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    cli.run(main)
