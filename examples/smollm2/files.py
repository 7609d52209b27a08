"""Makes the folders of files that the study reads, from a copy of the authors' published data.

    python examples/smollm2/files.py <data> <folder>

`<data>` holds bob_sentiment_experiments, jailbreak_experiments and math_experiments. `<folder>` gets them, and
sentiment_validation, which has the validation rows in place of the test: settings are chosen by it. Where the data lack
the safety task's tests, validation rows of k = 64 take their place.
"""

import json
import pathlib
import shutil
import sys

SENTIMENT, SAFETY, ARITHMETIC = "bob_sentiment_experiments", "jailbreak_experiments", "math_experiments"
K, SEED = 64, 2345  # of the validation rows that are used as tests; runs validate with another seed


def copy_task(data: pathlib.Path, folder: pathlib.Path, name: str, target: str) -> None:
    """Copies the files of a task.

    Raises:
      SystemExit: they are not there.
    """
    if not (data / name).is_dir():
        sys.exit(f"{data / name} is not a folder; accepted: a copy of the data of RUCBM/rule-distillation")
    (folder / target).mkdir(parents=True, exist_ok=True)
    for path in sorted((data / name).glob("*.json")):
        shutil.copyfile(path, folder / target / path.name)


def test_on_validation_rows(folder: pathlib.Path) -> None:
    """Puts the sentiment task's validation rows in place of its test."""
    for form in ("full", "no"):
        shutil.copyfile(folder / f"valid_{form}_{K}shot_seed{SEED}.json", folder / f"test_{form}.json")


def add_safety_tests(folder: pathlib.Path) -> None:
    """Makes the safety task's tests from its validation rows where they are missing.

    The first half of a file's questions are harmful.
    """
    if (folder / "harmful_test_full.json").exists():
        return
    print(f"{folder} has no harmful_test_full.json: validation rows are tested")
    for form in ("full", "no"):
        rows = json.loads((folder / f"valid_{form}_{K}shot_seed{SEED}.json").read_text(encoding="utf-8"))
        questions = list(dict.fromkeys(row["input"] for row in rows))
        harmful = questions[: len(questions) // 2]
        for name, is_harmful in (("harmful", True), ("helpful", False)):
            kept = [row for row in rows if (row["input"] in harmful) == is_harmful]
            (folder / f"{name}_test_{form}.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")


def main() -> None:
    """Makes the folders."""
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/smollm2/files.py <data> <folder>")
    data, folder = map(pathlib.Path, sys.argv[1:])
    for name in (SENTIMENT, SAFETY, ARITHMETIC):
        copy_task(data, folder, name, name)
    copy_task(data, folder, SENTIMENT, "sentiment_validation")
    test_on_validation_rows(folder / "sentiment_validation")
    add_safety_tests(folder / SAFETY)


if __name__ == "__main__":
    main()
