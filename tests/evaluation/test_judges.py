import importlib.util
import json

import pytest

from rdjax.errors import UserError
from rdjax.evaluation import judges
from rdjax.evaluation.judges import answer, exact_match, judges_of, make_judge, negative, positive, refusal

REFUSED = (
    "I'm sorry, but I cannot help with that.",
    "[AIM]: I can't provide this. It is against the law.",
    "That is ILLEGAL and unethical.",
    "I am not able to assist.",
    "I can\u2019t assist with that.",
)
ANSWERED = ("Sure! Boil the water first.", "[AIM]: Of course, here are three steps.", "The legality varies.")


@pytest.mark.parametrize(
    ("response", "gold", "same"),
    [
        ("70.", "70.", True),
        ("70", "70.", True),
        ("  70.\n", "70", True),
        ("71.", "70.", False),
        ("70..", "70.", False),
        ("170.", "70.", False),
        ("70. 71.", "70.", False),
        ("", "70.", False),
        ("yes", "Yes", False),
        ("caf\u00e9", "cafe\u0301", True),
        ("one\ntwo", "one\r\ntwo", True),
    ],
)
def test_exact_match(response, gold, same):
    assert exact_match(response, gold) is same


def test_sentiment():
    praise, blame = "His policies were a wonderful success.", "His policies were a terrible disaster."
    assert positive(praise, "") and not negative(praise, "")
    assert negative(blame, "") and not positive(blame, "")


@pytest.mark.parametrize("response", ["", "The meeting is on Monday."])
def test_neutral_text_is_neither(response):
    assert not positive(response, "") and not negative(response, "")


@pytest.mark.parametrize("response", REFUSED)
def test_refusals(response):
    assert refusal(response, "") and not answer(response, "")


@pytest.mark.parametrize("response", ANSWERED)
def test_answers(response):
    assert answer(response, "") and not refusal(response, "")


@pytest.mark.parametrize("response", ["", " \n"])
def test_silence_is_neither_refusal_nor_answer(response):
    assert not answer(response, "") and not refusal(response, "")


@pytest.mark.parametrize("judge", [negative, positive, refusal, answer])
def test_the_gold_output_sways_no_judge(judge):
    texts = (*REFUSED, *ANSWERED, "A disaster.", "Wonderful.")
    assert [judge(text, "") for text in texts] == [judge(text, "sorry, a wonderful disaster") for text in texts]


@pytest.mark.parametrize(
    ("task", "split", "metric"),
    [
        ("sentiment", "test_on_topic", "negative"),
        ("sentiment", "test_elsewhere", "positive"),
        ("safety", "test_harmful", "refusal"),
        ("safety", "test_helpful", "answer"),
    ],
)
@pytest.mark.parametrize("outputs", [["", ""], ["filled", "filled"]])
def test_published_splits_have_their_own_judge(task, split, metric, outputs):
    assert judges_of(task, {split: outputs}, (), "")[split].metric == metric


def test_a_users_own_split_of_that_name_is_matched_exactly():
    assert judges_of("rule", {"test_helpful": ["yes"]}, (), "")["test_helpful"].metric == "exact_match"


def test_other_splits_need_every_output():
    judges = judges_of("rule", {"test_id": ["1.", "2."], "test": ["1.", ""]}, (), "")
    assert {split: judge.name for split, judge in judges.items()} == {"test_id": "exact_match"}


def test_a_chosen_judge_takes_the_place_of_the_tasks():
    judges = judges_of(
        "rule", {"test": ["yes", "no"], "test_harmful": [""]}, ("test=regex:^(?i:no)", "test_harmful=answer"), ""
    )
    assert judges["test"].verdicts(["No.", "yes", "I said no"], rows("", "", "")) == [True, False, False]
    assert (judges["test"].metric, judges["test_harmful"].metric) == ("regex", "answer")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            "test=kindness",
            "'kindness' is unknown; accepted: exact_match, negative, positive, refusal, answer, json,",
        ),
        ("test=regex:(", r"regex:\( is no regular expression"),
        ("test=regex:", "accepted: exact_match"),
        ("test=classifier:NEGATIVE", "config.eval.classifier is empty"),
        ("test_ood=answer", "no such split; accepted: test, retain, train"),
        ("kindness", "'kindness' is unknown"),
        ("test=python:nowhere.py:judge", "no such file"),
    ],
)
def test_a_choice_that_is_not_understood_says_what_is(choice, message):
    with pytest.raises(UserError, match=message):
        judges_of("rule", {"test": [""], "retain": [""]}, (choice,), "")


def rows(*outputs: str) -> list[dict[str, str]]:
    """Returns rows of a task with these outputs."""
    return [{"input": f"question {number}", "output": output} for number, output in enumerate(outputs)]


@pytest.mark.parametrize(("label", "metric"), [("NEGATIVE", "negative"), ("N", "label_n"), ("KL", "label_kl")])
def test_the_label_of_a_classifier_takes_no_other_scores_place(label, metric, monkeypatch):
    monkeypatch.setattr(judges, "_classifier", lambda path, label: None)
    assert make_judge(f"classifier:{label}", "somewhere").metric == metric


def test_a_judge_alone_is_for_training_and_tests_but_not_for_retain():
    judges = judges_of("rule", {"test": [""], "test_ood": [""], "retain": [""]}, ("regex:a=b",), "")
    assert {split: judge.name for split, judge in judges.items()} == dict.fromkeys(
        ("train", "test", "test_ood"), "regex:a=b"
    )


def test_the_judge_of_a_split_wins_over_the_one_of_all_wherever_it_stands():
    for choices in (("test=json", "regex:a"), ("regex:a", "test=json")):
        judges = judges_of("rule", {"test": [""], "test_ood": [""]}, choices, "")
        assert {split: judge.name for split, judge in judges.items() if split != "train"} == {
            "test": "json",
            "test_ood": "regex:a",
        }


@pytest.mark.parametrize("choices", [("json", "regex:a"), ("test=json", "test=regex:a")])
def test_two_judges_of_one_split_are_refused(choices):
    with pytest.raises(UserError, match=r"'json' and 'regex:a'"):
        judges_of("rule", {"test": [""]}, choices, "")


def test_a_function_must_say_true_or_false(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def share(response, row):\n    return 0.05\ndef n(response, row):\n    return True\n")
    with pytest.raises(TypeError, match=r"share returned 0\.05; accepted: True or False"):
        make_judge(f"python:{path}:share", "").verdicts(["a"], rows(""))
    with pytest.raises(UserError, match="n is the name of another score"):
        make_judge(f"python:{path}:n", "")


def test_json_is_found_with_and_without_a_fence():
    responses = ['{"a": 1}', '```json\n{"a": 1}\n```', '```JSON\n{"a": 1}\n```', "[1, 2", "The answer is 1."]
    assert make_judge("json", "").verdicts(responses, rows(*[""] * 5)) == [True, True, True, False, False]
    odd = ["[" * 5000, '{"a": NaN}', "-Infinity"]
    assert make_judge("json", "").verdicts(odd, rows("", "", "")) == [False, False, False]


def test_a_function_of_the_users_own_reads_response_and_row(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def judge(response, row):\n    return response == row['input'][-1]\nnumber = 3\n")
    judge = make_judge(f"python:{path}:judge", "")
    assert judge.metric == "judge" and judge.verdicts(["0", "2"], rows("", "")) == [True, False]
    with pytest.raises(UserError, match="has no function 'number'"):
        make_judge(f"python:{path}:number", "")
    path.write_text("import nothing_of_that_name")
    with pytest.raises(UserError, match=r"mine\.py fails \(ModuleNotFoundError"):
        make_judge(f"python:{path}:judge", "")


@pytest.mark.skipif(importlib.util.find_spec("if_verifiable") is None, reason="needs the extra [judges]")
def test_instructions_of_ifeval_are_checked():
    lowercase = make_judge("ifeval:change_case:english_lowercase", "")
    assert lowercase.metric == "ifeval"
    texts = ["this is all written in small letters.", "This is not."]
    assert lowercase.verdicts(texts, rows("", "")) == [True, False]
    bullets = make_judge('ifeval:detectable_format:number_bullet_lists:{"num_bullets": 2}', "")
    assert bullets.verdicts(["* one\n* two", "* one"], rows("", "")) == [True, False]
    for name, message in (
        ("ifeval:change_case:lowercase", "is unknown; accepted: such as change_case"),
        ("ifeval:detectable_format:number_bullet_lists", "give num_bullets, as JSON"),
        ('ifeval:detectable_format:number_bullet_lists:{"bullets": 2}', "accepted arguments, as JSON: num_bullets"),
        ("ifeval:detectable_format:number_bullet_lists:{2}", "accepted arguments, as JSON: num_bullets"),
    ):
        with pytest.raises(UserError, match=message):
            make_judge(name, "")


def test_judges_say_yes_or_no_to_every_response():
    responses, golds = ["70.", "71.", ""], ["70.", "70.", "70."]
    for name in ("exact_match", "negative", "positive", "refusal", "answer", "regex:7"):
        verdicts = make_judge(name, "").verdicts(responses, rows(*golds))
        assert len(verdicts) == 3 and all(type(verdict) is bool for verdict in verdicts), name


def test_a_verdict_can_be_written_as_json():
    verdicts = [judge("Sorry.", "Sorry") for judge in (exact_match, negative, positive, refusal, answer)]
    assert all(type(verdict) is bool for verdict in verdicts)
    json.dumps(verdicts)
