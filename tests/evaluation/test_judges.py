import json

import pytest

from rdjax.errors import UserError
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
    assert judges["test"].verdicts(["No.", "yes", "I said no"], ["", "", ""]) == [True, False, False]
    assert (judges["test"].metric, judges["test_harmful"].metric) == ("regex", "answer")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("test=kindness", "'kindness' is unknown; accepted: exact_match, negative, positive, refusal, answer, regex:"),
        ("test=regex:(", r"regex:\( is no regular expression"),
        ("test=regex:", "accepted: exact_match"),
        ("test=classifier:NEGATIVE", "config.eval.classifier is empty"),
        ("test_ood=answer", "no such split; accepted: test, retain"),
        ("answer", "no such split; accepted: test, retain"),
    ],
)
def test_a_choice_that_is_not_understood_says_what_is(choice, message):
    with pytest.raises(UserError, match=message):
        judges_of("rule", {"test": [""], "retain": [""]}, (choice,), "")


def test_judges_say_yes_or_no_to_every_response():
    responses, golds = ["70.", "71.", ""], ["70.", "70.", "70."]
    for name in ("exact_match", "negative", "positive", "refusal", "answer", "regex:7"):
        verdicts = make_judge(name, "").verdicts(responses, golds)
        assert len(verdicts) == 3 and all(type(verdict) is bool for verdict in verdicts), name


def test_a_verdict_can_be_written_as_json():
    verdicts = [judge("Sorry.", "Sorry") for judge in (exact_match, negative, positive, refusal, answer)]
    assert all(type(verdict) is bool for verdict in verdicts)
    json.dumps(verdicts)
