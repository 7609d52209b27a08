"""The classifier judge with a Hugging Face classifier: a tiny random one, saved as any other is."""

import json
import shutil

import numpy as np
import pytest

from rdjax.errors import UserError
from rdjax.evaluation.judges import make_judge

torch = pytest.importorskip("torch")
import transformers  # noqa: E402 (needs torch)

pytestmark = pytest.mark.parity

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "fine", "poor", "very", "not")
TEXTS = ["good", "bad", "very good", "not good", "fine fine poor", "very bad", "poor", "not bad very fine"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=1.0,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


def labels(folder) -> np.ndarray:
    """The classifier's own labels, without the judge."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits.argmax(-1).numpy()


@pytest.mark.parametrize(("label", "number"), [("NEGATIVE", 0), ("POSITIVE", 1)])
def test_the_judge_says_what_the_classifier_says(folder, label, number):
    judge = make_judge(f"classifier:{label}", str(folder))
    assert judge.metric == label.lower()
    verdicts = judge.verdicts(TEXTS, [""] * len(TEXTS))
    assert json.loads(json.dumps(verdicts)) == (labels(folder) == number).tolist()
    assert 0 < sum(verdicts) < len(TEXTS), "it tells the texts apart"


def test_an_unknown_label_lists_the_known_ones(folder):
    with pytest.raises(UserError, match=r"classifier:GOOD is unknown; .* knows NEGATIVE, POSITIVE"):
        make_judge("classifier:GOOD", str(folder))


def test_a_folder_that_is_no_classifier_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is no sequence classifier"):
        make_judge("classifier:GOOD", str(tmp_path))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_classifier_never_runs(folder, tmp_path, file, monkeypatch):
    """Neither does it ask: standard input would answer yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    copy = shutil.copytree(folder, tmp_path / "planted")
    (copy / "planted.py").write_text("raise SystemExit('code of the classifier ran')")
    classes = dict.fromkeys(("AutoConfig", "AutoModelForSequenceClassification"), "planted.Planted")
    classes["AutoTokenizer"] = ["planted.Planted", "planted.Planted"]
    fields = json.loads((copy / file).read_text()) | {"auto_map": classes}
    (copy / file).write_text(json.dumps(fields))
    try:
        assert make_judge("classifier:POSITIVE", str(copy)).verdicts(TEXTS, [""] * len(TEXTS))
    except UserError as error:
        assert str(copy) in str(error)
