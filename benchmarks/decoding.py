"""Measures tokens a second of generation, greedy and by beam search.

Each is measured with the rule computed once and with the rule in every row.

    python -m benchmarks.decoding [--shape=20m] [--out=benchmarks/results/decoding_cpu.json]
"""

from unittest import mock

from absl import app, flags

from benchmarks.problem import SHAPES, make_problem, seconds, show_table, write_figures
from rdjax.data import prefix
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding

_SHAPE = flags.DEFINE_enum("shape", "20m", list(SHAPES), "Of the random Llama.")
_PROMPTS = flags.DEFINE_integer("prompts", 64, "Prompts to answer.")
_RULE = flags.DEFINE_integer("rule", 250, "Tokens of the rule that all prompts begin with.")
_NEW = flags.DEFINE_integer("new", 32, "New tokens a prompt.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")


def main(argv: list[str]) -> None:
    del argv
    problem = make_problem(_SHAPE.value, _PROMPTS.value, _RULE.value)
    prompts = [pair.prompts.teacher_ids for pair in problem.pairs]
    rows = []
    for beams in (1, 4):
        for batch_size in (8, 32):
            decoding = Decoding(_NEW.value, beams, ignore_eos=True)

            def work(decoding: Decoding = decoding, batch_size: int = batch_size):
                return generate(problem.model, problem.adapter, problem.spec.scale, prompts, decoding, batch_size)

            once = seconds(work, repeats=3)
            with mock.patch.object(prefix, "SHORTEST_PREFIX", 10**9):
                every = seconds(work, repeats=3)
            tokens = len(prompts) * _NEW.value
            rows.append([beams, batch_size, tokens / once, tokens / every, every / once])
    print(f"{_SHAPE.value}: {len(prompts)} prompts behind a rule of {_RULE.value} tokens, {_NEW.value} new tokens each")
    head = ["beams", "rows", "tokens/s, rule once", "tokens/s, rule in every row", "ratio"]
    show_table(head, rows)
    names = ("beams", "rows", "tokens_a_second", "tokens_a_second_rule_in_every_row", "ratio")
    made = [dict(zip(names, row, strict=True)) for row in rows]
    write_figures(_OUT.value, {"shape": _SHAPE.value, "rule": _RULE.value, "new": _NEW.value, "decoding": made})


if __name__ == "__main__":
    app.run(main)
