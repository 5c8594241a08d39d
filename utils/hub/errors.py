"""Explanations of Hub errors in one sentence: a wrong name, missing access or a network problem."""

from collections.abc import Iterator

from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


# Connection errors come from the HTTP library, which depends on the version of huggingface_hub.
HTTP_LIBRARIES = ("requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2")


def explain_hub_error(error: BaseException, name: str, is_upload: bool = False) -> str:
    """Explain the error as a wrong name, missing access or a network problem; other errors keep their own text.

    Libraries wrap the Hub's response in errors of their own, so the whole chain of causes is searched. The Hub gives
    the same response for a repository that does not exist and for a private one that the token cannot read.

    Args:
        name: the repository that was requested.
        is_upload: whether the request was a write, authorized by `--hub_token`, and not a read, by `--token`.
    """
    return _explanation(list(_causes(error)), name, is_upload) or str(error)


def is_hub_error(error: BaseException) -> bool:
    """Whether `explain_hub_error` has its own explanation of this error."""
    return _explanation(list(_causes(error)), "", False) is not None


def is_network_error(error: BaseException) -> bool:
    """Whether the error means that there was no connection, or that it failed."""
    # OfflineModeIsEnabled is a ConnectionError. LocalEntryNotFoundError: no network, and the file is not in the cache.
    library = type(error).__module__.split(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError, LocalEntryNotFoundError)) or library in HTTP_LIBRARIES


def _explanation(causes: list[BaseException], name: str, is_upload: bool) -> str | None:
    flag = "--hub_token" if is_upload else "--token"
    no_folder = "" if is_upload else f"there is no folder {name}, and "
    not_local = "" if is_upload else f", and {name} is neither a folder nor in the cache"
    for error in causes:
        if isinstance(error, GatedRepoError) or isinstance(error, DatasetNotFoundError) and "gated" in str(error):
            return (
                f"access denied: {name} is gated, and its owner decides who may read it; request access on its page, "
                f"then pass your token with {flag} or log in with `hf auth login`"
            )
        if isinstance(error, RevisionNotFoundError) or isinstance(error, DatasetNotFoundError) and "Rev" in str(error):
            return f"wrong name: {name} has no such revision (branch, tag or commit)"
        if isinstance(error, (RepositoryNotFoundError, DatasetNotFoundError)):
            return (
                f"wrong name: {no_folder}the Hub has no such repository; or access denied, if it is private: pass a "
                f"token that can access it with {flag}, or log in with `hf auth login`"
            )
        if isinstance(error, LocalTokenNotFoundError):
            return (
                f"access denied: there is no token; pass one with {flag}, in HF_TOKEN, or log in with `hf auth login`"
            )
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            return f"access denied: the Hub rejects this token (from {flag}, HF_TOKEN or `hf auth login`)"
        if status == 403:
            return f"access denied: this token (from {flag}, HF_TOKEN or `hf auth login`) is not allowed to do that"
        if status == 429 or status is not None and status >= 500:
            return f"network error: the Hub responds with status {status}; try again later"
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return f"wrong name: {name} is on the Hub, but lacks the required file"
        if isinstance(error, HFValidationError):
            return f"wrong name: {no_folder}it is not a valid repository name"
    if any(map(is_network_error, causes)):
        if constants.HF_HUB_OFFLINE:
            return f"no network: HF_HUB_OFFLINE is set{not_local}"
        return f"network error: {constants.ENDPOINT} cannot be reached{not_local}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its chain of causes, the root cause last."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
