"""Evaluates adapters without training: `python -m rdjax.evaluate --config=configs/rule.py --workdir=runs/scores ...`.

    --adapters=<folder or hub id>            its scores are those of the system "student"
    --adapters=<name>=<folder>,<name>=<...>  several adapters, each a system of its name

Adapters are PEFT's, of rdjax or not. The base without the rule and with it in the prompt is always evaluated too. The
other flags are those of rdjax.train, of which the task, the model and `eval` count.
"""

import pathlib

from absl import flags

from rdjax.errors import UserError
from rdjax.evaluation.answers import System
from rdjax.evaluation.results import results_table
from rdjax.evaluation.verdict import verdict
from rdjax.models.load import resolve_folder
from rdjax.models.lora import scaled_adapter
from rdjax.models.peft_files import load_adapter
from rdjax.parallel.mesh import put, replicated
from rdjax.parallel.processes import exists_on_first
from rdjax.report.page import write_page
from rdjax.run import cli, run_flags
from rdjax.run.adapter_folder import adapter_notes
from rdjax.run.experiment import Experiment
from rdjax.run.pipeline import evaluate_systems
from rdjax.run.prepare import check_run, prepare_evaluation
from rdjax.storage.records import Results, read_record, write_record
from rdjax.storage.workdir import RESULTS

_ADAPTERS = flags.DEFINE_list("adapters", [], "PEFT adapters: folders or hub ids, or <name>=<folder>.")
TAKEN = ("base", "base_with_rule")


def name_adapters(texts: list[str]) -> dict[str, pathlib.Path]:
    """Returns the folders of the adapters by their names.

    Raises:
      UserError: two have the same name, or one is not found.
    """
    folders: dict[str, pathlib.Path] = {}
    for text in texts:
        name, found, path = text.partition("=")
        if not found:
            name, path = "student", text
        taken = {other for known in folders for other in (known, f"{known}_with_rule")}
        if not name or {name, f"{name}_with_rule"} & {*TAKEN, *taken}:
            raise UserError(f"--adapters: the name {name!r} is taken; accepted: <name>=<folder> with different names")
        folders[name] = resolve_folder(path, "adapter")
    return folders


def read_systems(prepared: Experiment, adapters: dict[str, pathlib.Path]) -> dict[str, System]:
    """Returns the base, and each adapter without the rule and with it, by name.

    Raises:
      UserError: an adapter does not fit the model.
    """
    model, systems = prepared.model, {"base": prepared.base, "base_with_rule": prepared.base_with_rule}
    for name, folder in adapters.items():
        for note in adapter_notes(folder, model, prepared.options.template):
            print(f"note: {note}")
        adapter, spec = load_adapter(folder, model.config, model.base)
        # Systems are run at one scale, that of the config.
        adapter = put(scaled_adapter(adapter, spec.scale / prepared.options.scale), replicated(model.mesh))
        systems[name] = System(adapter, with_rule=False)
        systems[f"{name}_with_rule"] = System(adapter, with_rule=True)
    return systems


def main(argv: list[str]) -> None:
    """Scores the base and the adapters, or prints the scores that are there."""
    cli.no_arguments(argv)
    config = run_flags.config("configs/rule.py")
    check_run(config)
    adapters = name_adapters(_ADAPTERS.value)
    prepared = prepare_evaluation(config, run_flags.workdir(), "rdjax.evaluate", adapters)
    for note in prepared.task.notes:
        print(f"note: {note}")
    systems = read_systems(prepared, adapters)
    finished = prepared.workdir / RESULTS
    if exists_on_first(finished):
        print(f"{prepared.workdir} is finished:")
    else:
        write_record(finished, evaluate_systems(prepared, systems))
        print(f"wrote {finished}\nwrote {write_page(prepared.workdir)}")
    results = read_record(finished, Results)
    print(results_table(results))
    print("\n".join(verdict(results)))


if __name__ == "__main__":
    cli.run(main)
