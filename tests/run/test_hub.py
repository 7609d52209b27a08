"""Uploads to the hub: every failure is one line, and nothing is lost."""

import types

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from rdjax.errors import UserError
from rdjax.run.hub import check_push, push_folder


class Hub:
    """Stands in the hub's place, and answers every call with an error or with nothing."""

    error: Exception | None = None
    calls: tuple = ()

    def __init__(self, token):
        Hub.calls = (token,)

    def answer(self, *args, **kwargs):
        Hub.calls += (args or kwargs,)
        if Hub.error is not None:
            raise Hub.error

    whoami = create_repo = upload_folder = answer


def refusal(status: int) -> HfHubHTTPError:
    # The class of the response is requests', httpx' or httpx2's, by the version of huggingface_hub.
    return HfHubHTTPError("no", response=types.SimpleNamespace(status_code=status, headers={}, request=None))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", "secret")
    Hub.error = None
    return Hub


def test_a_token_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="HF_TOKEN is not set"):
        check_push("me/mine")


def test_a_folder_is_uploaded_to_a_private_repository(hub, tmp_path):
    check_push("me/mine")
    assert push_folder(tmp_path, "me/mine") == "https://huggingface.co/me/mine"
    assert hub.calls == ("secret", ("me/mine",), {"repo_id": "me/mine", "folder_path": tmp_path})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refusal(401), "the token in HF_TOKEN is not accepted"),
        (refusal(403), "the hub refuses it"),
        (ConnectionError("no route"), r"the hub cannot be reached \(ConnectionError\)"),
    ],
)
def test_a_hub_that_does_not_take_it_is_one_line_and_the_folder_stays(hub, tmp_path, error, message):
    hub.error = error
    with pytest.raises(UserError, match=message):
        check_push("me/mine")
    with pytest.raises(UserError, match=f"{message}.*; {tmp_path} is complete"):
        push_folder(tmp_path, "me/mine")


def test_a_name_that_is_none_is_refused(hub):
    with pytest.raises(UserError, match=r"--push_to_hub=a//b"):
        check_push("a//b")
