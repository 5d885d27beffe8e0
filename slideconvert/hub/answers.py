"""Answers that no Hub gives: of a proxy, of a login page, of another server.

huggingface_hub takes answers apart without checking them, and raises the errors that Python has for this.
"""

from __future__ import annotations

import traceback

from ..errors import HubError
from .endpoint import host

BUILT_IN = (LookupError, TypeError, AttributeError, ValueError, RecursionError)
LIBRARY, OURS = "huggingface_hub", __name__.partition(".")[0]
EXPECTED = {
    "whoami": "the user of the token",
    "model_info": "the commit and the files of the model",
    "hf_hub_download": "a file with its size and checksum",
    "create_repo": "the address of the new repository",
    "preupload_lfs_files": "where each file is to be sent",
    "_validate_yaml": "whether the model card is valid",
    "create_commit": "the new commit, which may exist now,",
}
"""What the Hub is asked for, by the function of huggingface_hub that asks."""


def not_a_hub(expected: str) -> HubError:
    """The error for an answer that no Hub gives to the question for `expected`."""
    return HubError(
        f"{host()} does not answer like a Hugging Face Hub: {expected} was expected",
        hint="check HF_ENDPOINT and the proxy",
    )


def foreign_answer(error: Exception) -> HubError | None:
    """The HubError for an error that huggingface_hub raises, itself or in what it calls, while it reads an answer.

    None for other errors, among them those that begin in slideconvert.
    """
    from huggingface_hub.errors import HFValidationError

    if not isinstance(error, BUILT_IN) or isinstance(error, HFValidationError) or not _begins_in_library(error):
        # huggingface_hub wraps errors of large files
        return foreign_answer(error.__cause__) if isinstance(error.__cause__, Exception) else None
    asked = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return not_a_hub(next((EXPECTED[name] for name in reversed(asked) if name in EXPECTED), "another answer"))


def _begins_in_library(error: Exception) -> bool:
    """Whether huggingface_hub, not slideconvert, called the function that raised the error."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [name for module in modules if (name := module.partition(".")[0]) in (LIBRARY, OURS)]
    return packages[-1:] == [LIBRARY]
