"""Opens a local page that answers side by side: `python -m rdjax.playground --workdir=runs/mine`.

Base, base with the rule and student answer the same input, word for word as they write. It needs the extra
`[playground]`. The page is served to this machine alone.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import flags

from rdjax.data.rows import input_row
from rdjax.defaults import get_config
from rdjax.errors import UserError
from rdjax.evaluation.answers import System, prompts_of
from rdjax.generation.options import Decoding
from rdjax.generation.stream import stream
from rdjax.models.peft_files import load_adapter
from rdjax.parallel.mesh import put, replicated
from rdjax.run import cli, run_flags
from rdjax.run.adapter_folder import adapter_notes
from rdjax.run.experiment import Experiment
from rdjax.run.prepare import read_experiment
from rdjax.storage.records import Results, RunRecord, read_record
from rdjax.storage.workdir import RECORD, RESULTS

_PORT = flags.DEFINE_integer("port", 7860, "Port of the page, on this machine alone.")
_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 128, "The most tokens of an answer.", lower_bound=1, allow_override=True
)

NAMES = {"base": "Base", "base_with_rule": "Base that reads the rule", "student": "Student, without the rule"}


def read_run(workdir: pathlib.Path) -> tuple[Experiment, dict[str, System], dict[str, str]]:
    """Reads a finished run: how it is prompted, its systems, and its rules by name; a single one has the name "".

    Raises:
      UserError: the folder holds no finished run.
    """
    if not (workdir / RESULTS).exists() or not (workdir / RECORD).exists():
        raise UserError(f"--workdir: {workdir} holds no finished run (no {RESULTS}); train first")
    config = get_config()
    with config.unlocked():
        config.update(read_record(workdir / RECORD, RunRecord)["config"])
    prepared, _ = read_experiment(config, workdir, None)
    for note in adapter_notes(workdir / "adapter", prepared.model, prepared.options.template):
        print(f"note: {note}")
    adapter, _ = load_adapter(workdir / "adapter", prepared.model.config, prepared.model.base)
    systems = {
        "base": prepared.base,
        "base_with_rule": prepared.base_with_rule,
        "student": System(put(adapter, replicated(prepared.model.mesh)), with_rule=False),
    }
    return prepared, systems, dict(prepared.task.rules) or {"": read_record(workdir / RESULTS, Results)["rule"]}


def answers(
    prepared: Experiment, systems: dict[str, System], rule: str, text: str, max_new_tokens: int
) -> Iterator[list[str]]:
    """Yields the answers of all systems so far."""
    model = prepared.model
    options = dataclasses.replace(prepared.options, decoding=Decoding(max_new_tokens))
    (prompts,) = prompts_of(model, [input_row(text, "the input", rule)], options)
    texts = dict.fromkeys(systems, "")
    streams = {
        name: stream(
            model,
            system.adapter,
            options.scale,
            prompts.teacher_ids if system.with_rule else prompts.student_ids,
            max_new_tokens,
        )
        for name, system in systems.items()
    }
    while streams:
        for name in list(streams):
            ids = next(streams[name], None)
            if ids is None:
                del streams[name]
            else:
                texts[name] = model.tokenizer.decode(ids, skip_special_tokens=True)
        yield list(texts.values())


def build_page(prepared: Experiment, systems: dict[str, System], rules: dict[str, str], max_new_tokens: int) -> Any:
    """Returns the page; of several rules the user chooses the one that the base reads.

    Raises:
      UserError: gradio is not installed.
    """
    try:
        import gradio
    except ImportError:
        raise UserError("the playground needs gradio: pip install 'rdjax[playground]'") from None

    names = list(rules)

    def respond(text: str, name: str) -> Iterator[list[str]]:
        if text.strip():
            try:
                yield from answers(prepared, systems, rules[name], text.strip(), max_new_tokens)
            except UserError as error:
                raise gradio.Error(str(error)) from None

    with gradio.Blocks(title="rdjax playground", analytics_enabled=False) as page:
        gradio.Markdown(f"# {prepared.workdir.name}\n\nThe rule, which the student does not read:")
        name = gradio.Dropdown(names, value=names[0], show_label=False, visible=len(names) > 1)
        rule = gradio.Textbox(rules[names[0]], show_label=False, interactive=False, lines=2, max_lines=6)
        name.change(lambda chosen: rules[chosen], name, rule)
        text = gradio.Textbox(label="Your input", placeholder="Ask something, then press Enter", autofocus=True)
        button = gradio.Button("Answer", variant="primary")
        with gradio.Row():
            boxes = [
                gradio.Textbox(label=label, interactive=False, lines=4, max_lines=24, min_width=280, elem_id=name)
                for name, label in NAMES.items()
            ]
        for event in (text.submit, button.click):
            event(respond, [text, name], boxes, concurrency_limit=1, show_progress="minimal")
    return page


def main(argv: list[str]) -> None:
    """Serves the page until it is interrupted."""
    cli.no_arguments(argv)
    prepared, systems, rules = read_run(run_flags.workdir())
    page = build_page(prepared, systems, rules, _TOKENS.value)
    import gradio

    fonts = ["system-ui", "sans-serif"]  # none from the network
    theme = gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    page.queue().launch(server_name="127.0.0.1", server_port=_PORT.value, share=False, theme=theme, quiet=True)


if __name__ == "__main__":
    cli.run(main)
