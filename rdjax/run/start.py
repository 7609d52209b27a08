"""Prints what a user should see before a run takes its time: a sample, its lengths, the gap to close."""

from rdjax.config import hidden_weight
from rdjax.data.pairs import Pair, check_lengths
from rdjax.evaluation.answers import length_limit
from rdjax.evaluation.divergence import GAP_NEAR_ZERO, gap_to_close
from rdjax.models.load import LanguageModel
from rdjax.run.experiment import Run
from rdjax.run.inputs import evenly


def report_start(run: Run) -> None:
    """Prints notes on the task, a sample, the longest sequence, the hidden loss and the gap to close."""
    config, model = run.config, run.model
    for note in (*run.task.notes, *run.options.template.notes):
        print(f"note: {note}")
    show_sample(run.train[0], model)
    limit, limit_name = length_limit(model, config.task.max_length)
    longest = check_lengths([*run.train, *run.valid], limit, limit_name)
    print(f"longest prompt with response: {longest} tokens of {limit_name} = {limit}")
    width = model.config.width
    weight = hidden_weight(config.loss, width)
    field = "hidden_beta" if config.loss.hidden_beta is not None else "hidden_weight"
    print(f"hidden loss: {weight:g} * mean_l ||u_t - u_s||^2 (from loss.{field}; beta {weight * width:g})")
    if config.eval.gap_rows and not config.task.remove_rule:  # its teacher reads no rule
        report_gap(run)


def show_sample(pair: Pair, model: LanguageModel) -> None:
    """Prints both prompts of a pair, each with the response marked."""
    response = model.tokenizer.decode(pair.response_ids)
    end = model.tokenizer.convert_ids_to_tokens(model.eos_ids[0]) if pair.ended else ""
    for name, prompt in (("teacher, with the rule", pair.prompts.teacher_text), ("student", pair.prompts.student_text)):
        print(f"--- {name} ---\n{prompt}>>>{response}{end}<<<")
    tokens = len(pair.response_ids)
    shared = pair.prompts.shared + tokens
    print(f"--- the response (>>> <<<) is the same {tokens} tokens in both; the shared tail has {shared} ---")


def report_gap(run: Run) -> None:
    """Measures and prints how far the rule in context moves the base, on validation prompts where there are any."""
    prompts = [pair.prompts for pair in evenly(run.valid or run.train, run.config.eval.gap_rows)]
    gap = gap_to_close(run.model, run.start, prompts, run.options)
    run.log.truncate("gap", -1)
    run.log.write("gap", 0, {"kl": gap})
    print(f"gap to close: KL(base with rule || base) = {gap:.4f} nats per token over {len(prompts)} prompts")
    if gap < GAP_NEAR_ZERO:
        print(
            "warning: the rule in the prompt changes next to nothing in what this model says: "
            "there is nothing to distil"
        )
