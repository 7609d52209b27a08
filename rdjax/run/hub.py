"""Uploads a folder to the Hugging Face hub, with a token from the environment."""

import os
import pathlib

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from rdjax.errors import UserError


def check_push(repository: str) -> None:
    """Checks before training that a folder can be uploaded: the name, and that the hub accepts the token.

    Raises:
      UserError: there is no token, it is wrong, the name is none of a repository, or the hub does not answer.
    """
    if not os.environ.get("HF_TOKEN"):
        raise UserError("--push_to_hub: the variable HF_TOKEN is not set; accepted: a token that may write")
    if "/" not in repository:
        raise UserError(f"--push_to_hub={repository}: accepted: <user or organisation>/<name>")
    try:
        huggingface_hub.utils.validate_repo_id(repository)
        huggingface_hub.HfApi(token=os.environ["HF_TOKEN"]).whoami()
    except HFValidationError as error:
        raise UserError(f"--push_to_hub={repository}: {error}") from None
    except HfHubHTTPError as error:
        raise _refused(repository, error) from None
    except Exception as error:  # whatever the network raises
        raise _unreachable(repository, error) from None


def push_folder(folder: pathlib.Path, repository: str) -> str:
    """Uploads a folder to a repository, which is created as a private one if there is none; returns its address.

    Raises:
      UserError: the hub refuses the token or does not answer; nothing is lost.
    """
    api = huggingface_hub.HfApi(token=os.environ.get("HF_TOKEN"))
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except HfHubHTTPError as error:
        raise _refused(repository, error, folder) from None
    except Exception as error:  # whatever the network raises
        raise _unreachable(repository, error, folder) from None
    return f"https://huggingface.co/{repository}"


def _refused(repository: str, error: HfHubHTTPError, folder: pathlib.Path | None = None) -> UserError:
    """Returns the error of a hub that answers no."""
    status = getattr(error.response, "status_code", None)
    reason = "the token in HF_TOKEN is not accepted" if status == 401 else f"the hub refuses it ({error})"
    return UserError(f"--push_to_hub={repository}: {reason}{_kept(folder)}")


def _unreachable(repository: str, error: Exception, folder: pathlib.Path | None = None) -> UserError:
    """Returns the error of a hub that does not answer."""
    return UserError(f"--push_to_hub={repository}: the hub cannot be reached ({type(error).__name__}){_kept(folder)}")


def _kept(folder: pathlib.Path | None) -> str:
    """Says that a folder is still there, and how it can be uploaded later."""
    return "" if folder is None else f"; {folder} is complete, and the same command tries again"
