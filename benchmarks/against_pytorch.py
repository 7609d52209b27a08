"""Compares rdjax with the same distillation in PyTorch, transformers and peft, one after the other on one machine.

    python -m benchmarks.against_pytorch --data=<data>/bob_sentiment_experiments \\
        [--epochs=20] [--epochs_published=2] [--out=benchmarks/results/against_pytorch.json]

A random Llama of 19 million parameters (8 layers, width 384, 6,000 tokens of the data's own text), the published
sentiment files at k = 64, batch 4, LoRA of rank 16 on q, k, v, o, nothing validated. PyTorch in two settings:

* published: every sequence is padded to 1024 tokens; micro-batches of one; a second model as teacher, which runs in
  every epoch; logits and hidden states at all positions. All epochs are the same work, so only `--epochs_published`
  are run and the time is scaled to `--epochs`.
* tuned: sequences are padded to the longest of the batch; the teacher is the student without its adapter; logits and
  losses at the response only.

PyTorch's time is that of the training loop. The time of rdjax is that of the whole command, with start-up, compilation
and the teacher's pass; with the dropout of the paper's example and without; each once without compiled programs on
disk and once with them. Needs the extra [parity].
"""

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from rdjax.config import DEFAULT_HIDDEN_WEIGHT

_DATA = flags.DEFINE_string("data", None, "The published folder bob_sentiment_experiments.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Of every run that is counted.")
_EPOCHS_PUBLISHED = flags.DEFINE_integer("epochs_published", 2, "Of the published setting, which is scaled up.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
_PART = flags.DEFINE_enum("part", None, ["published", "tuned"], "One PyTorch run, in a process of its own.")
_MODEL = flags.DEFINE_string("model", None, "Of --part: the checkpoint.")

K, BATCH, RANK, RATE, TEMPERATURE = 64, 4, 16, 1e-3, 1.0
PAD_TO = 1024
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
VOCAB = 6000


def read(name: str) -> list[dict[str, str]]:
    """Reads a published file."""
    return json.loads((pathlib.Path(_DATA.value) / name).read_text())


def make_checkpoint(folder: pathlib.Path) -> None:
    """Writes a random Llama with a tokenizer trained on the data."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [text for row in read(f"train_full_{K}shot.json") + read("test_full.json") for text in row.values()]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, VOCAB, min_frequency=1, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    heads = SHAPE["num_attention_heads"]
    config = LlamaConfig(
        vocab_size=VOCAB,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        **SHAPE,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Holds the token ids of a sample for both sides, and the length of the response that ends both."""

    teacher: list[int]
    student: list[int]
    response: int  # tokens, end of sequence included


def samples(model: str) -> list[Sample]:
    """Returns prompts and responses as token ids, in the Alpaca template."""
    from transformers import AutoTokenizer

    from rdjax.data.templates import alpaca_prompt

    tokenizer = AutoTokenizer.from_pretrained(model)
    made = []
    for full, plain in zip(read(f"train_full_{K}shot.json"), read(f"train_no_{K}shot.json"), strict=True):
        response = [*tokenizer(full["output"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        teacher, student = (
            tokenizer(alpaca_prompt(row["instruction"], row["input"]))["input_ids"] + response for row in (full, plain)
        )
        made.append(Sample(teacher, student, len(response)))
    return made


def run_torch(tuned: bool, epochs: int) -> float:
    """Trains with PyTorch and returns the seconds of the training loop."""
    import peft
    import torch
    from torch.nn import functional
    from transformers import LlamaForCausalLM

    data = samples(_MODEL.value)
    lora = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, lora_dropout=0.05, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    student = peft.get_peft_model(LlamaForCausalLM.from_pretrained(_MODEL.value), lora).train()
    teacher = student if tuned else LlamaForCausalLM.from_pretrained(_MODEL.value).eval()
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)

    def padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
        width = max(map(len, rows)) if tuned else PAD_TO
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": real}

    def states(model, rows: list[list[int]]):
        """Returns the inputs of all blocks [L, B, T, D] and the final states."""
        out = model.model(**padded(rows), output_hidden_states=True)
        return torch.stack(out.hidden_states[:-1]), out.last_hidden_state

    def positions(rows: list[list[int]], part: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the rows and positions of the logits that predict the responses."""
        at = [
            (b, t)
            for b, (row, s) in enumerate(zip(rows, part, strict=True))
            for t in range(len(row) - s.response - 1, len(row) - 1)
        ]
        return tuple(torch.tensor(axis) for axis in zip(*at, strict=True))

    def tuned_loss(part: list[Sample]) -> torch.Tensor:
        inner, head = student.base_model.model, student.base_model.model.lm_head
        rows = [s.teacher for s in part], [s.student for s in part]
        with torch.no_grad(), student.disable_adapter():
            hidden_t, final_t = states(inner, rows[0])
            b, t = positions(rows[0], part)
            u_t, logits_t = functional.normalize(hidden_t[:, b, t], dim=-1), head(final_t[b, t])
        hidden_s, final_s = states(inner, rows[1])
        b, t = positions(rows[1], part)
        u_s, logits_s = functional.normalize(hidden_s[:, b, t], dim=-1), head(final_s[b, t])
        kl = functional.kl_div(
            logits_s.log_softmax(-1), logits_t.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        return kl.mean() + DEFAULT_HIDDEN_WEIGHT * (u_t - u_s).pow(2).sum(-1).mean()

    def published_loss(s: Sample) -> torch.Tensor:
        with torch.no_grad():
            t = teacher(**padded([s.teacher]), output_hidden_states=True)
        o = student(**padded([s.student]), output_hidden_states=True)
        masks = []
        for row in (s.teacher, s.student):
            mask = torch.zeros(PAD_TO, dtype=torch.bool)
            mask[len(row) - s.response : len(row)] = True
            masks.append(mask)
        p_t, p_s = functional.softmax(t.logits[0], dim=-1), functional.log_softmax(o.logits[0], dim=-1)
        kl = functional.kl_div(p_s[masks[1]], p_t[masks[0]], reduction="none").sum(-1).mean()
        u_t, u_s = (functional.normalize(torch.stack(out.hidden_states[:-1]), dim=-1)[:, 0] for out in (t, o))
        return kl + DEFAULT_HIDDEN_WEIGHT * (u_t[:, masks[0]] - u_s[:, masks[1]]).pow(2).sum(-1).mean()

    order = np.random.RandomState(0)
    began = time.perf_counter()
    for _ in range(epochs):
        numbers = order.permutation(K)
        for start in range(0, K, BATCH):
            part = [data[number] for number in numbers[start : start + BATCH]]
            optimizer.zero_grad()
            if tuned:
                tuned_loss(part).backward()
            else:
                for sample in part:
                    (published_loss(sample) / BATCH).backward()
            optimizer.step()
    return time.perf_counter() - began


def measure_torch(part: str, model: pathlib.Path) -> float:
    """Runs PyTorch in a new process and returns the seconds that it prints."""
    flags_given = [f"--{name}={flags.FLAGS[name].value}" for name in ("data", "epochs", "epochs_published")]
    command = [sys.executable, "-m", "benchmarks.against_pytorch", f"--part={part}", f"--model={model}", *flags_given]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_ours(model: pathlib.Path, root: pathlib.Path, dropout: float, name: str) -> float:
    """Runs the rdjax command and returns its seconds; compiled programs are cached under `root`."""
    workdir = root / f"{name}-{dropout}"
    command = [
        *(sys.executable, "-m", "rdjax.train", "--config=configs/sentiment.py", f"--workdir={workdir}"),
        *(f"--config.model.path={model}", f"--config.task.root={_DATA.value}", f"--config.task.k={K}"),
        *(f"--config.train.batch_size={BATCH}", f"--config.train.epochs={_EPOCHS.value}"),
        *("--config.train.valid_every=0", "--config.eval.systems=()", "--config.eval.gap_rows=0"),
        *(f"--config.lora.rank={RANK}", f"--config.lora.dropout={dropout}"),
        f"--config.optimizer.learning_rate={RATE}",
        *("--config.loss.hidden_positions=response", f"--config.loss.hidden_weight={DEFAULT_HIDDEN_WEIGHT}"),
        *(f"--config.train.checkpoint_every={_EPOCHS.value}", "--config.train.accumulation=1"),
        "--config.task.one_wording=False",
    ]
    began = time.perf_counter()
    environment = os.environ | {"XDG_CACHE_HOME": str(root / f"cache-{dropout}")}
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if made.returncode:
        sys.exit(made.stderr[-3000:])
    return time.perf_counter() - began


def main(argv: list[str]) -> None:
    del argv
    if _PART.value:
        tuned = _PART.value == "tuned"
        print(run_torch(tuned, _EPOCHS.value if tuned else _EPOCHS_PUBLISHED.value))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        model = root / "model"
        make_checkpoint(model)
        ours = {
            f"rdjax, dropout {dropout}{name}": measure_ours(model, root, dropout, name or "first")
            for dropout in (0.05, 0.0)
            for name in ("", ", again")
        }
        tuned = measure_torch("tuned", model)
        published = measure_torch("published", model) * _EPOCHS.value / _EPOCHS_PUBLISHED.value
    print(f"{'':27}{'seconds':>9}{'x tuned':>9}{'x published':>13}")
    for name, seconds in {**ours, "PyTorch, tuned": tuned, "PyTorch, published": published}.items():
        print(f"{name:27}{seconds:9.1f}{tuned / seconds:9.2f}{published / seconds:13.1f}")
    if _OUT.value:
        figures = {**ours, "tuned": tuned, "published": published, "epochs": _EPOCHS.value}
        figures |= {"epochs_published_run": _EPOCHS_PUBLISHED.value, "cores": os.cpu_count()}
        pathlib.Path(_OUT.value).write_text(
            json.dumps(figures | {"python": platform.python_version()}, indent=2) + "\n"
        )


if __name__ == "__main__":
    app.run(main)
