"""Compares one `rdjax.sweep` of five seeds with five `rdjax.train`, as whole commands, one after the other.

python -m benchmarks.seeds_at_once [--out=benchmarks/results/seeds_at_once.json]
"""

import json
import os
import pathlib
import platform
import tempfile

from absl import app, flags

from benchmarks.rule_runs import seconds
from configs import quickstart

_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")

SEEDS = (0, 1, 2, 3, 4)


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        cell = (
            '--config.sweep.methods=("rule_distill_base",)',
            "--config.sweep.ks=(8,)",
            f"--config.sweep.seeds={SEEDS}",
            # Everything else as in the quickstart.
            "--config.sweep.updates=0",
            f"--config.eval.systems={quickstart.get_config().eval.systems}",
        )
        together = seconds("rdjax.sweep", "--config=configs/sweeps/arithmetic.py", f"--workdir={root / 'sweep'}", *cell)
        alone = [
            seconds(
                "rdjax.train",
                "--config=configs/quickstart.py",
                f"--workdir={root / str(seed)}",
                f"--config.seed={seed}",
            )
            for seed in SEEDS
        ]
    figures = {
        "seconds_of_one_sweep": together,
        "seconds_of_five_runs": alone,
        "ratio": together / sum(alone),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(f"five seeds at once {together:.0f} s; one by one {sum(alone):.0f} s; ratio {figures['ratio']:.2f}")
    if _OUT.value:
        pathlib.Path(_OUT.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
