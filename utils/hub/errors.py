"""What went wrong with the hub, in one sentence: the name, the access or the network."""

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


# A connection that fails raises an error of the library that made it, by the version of huggingface_hub.
HTTP_LIBRARIES = ("requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2")


def explain_hub_error(error: BaseException, name: str, is_upload: bool = False) -> str:
    """What is wrong with the name, the access or the network, as far as the error says so; else the error's own text.

    The libraries wrap what the hub answered into errors of their own, so the whole chain of causes is looked at. A
    repository that does not exist and a private one that the token does not open are the same to the hub.

    Args:
        name: of the repository that was asked for.
        is_upload: it was to be written to, with `--hub_token`, and not read, with `--token`.
    """
    return _explanation(list(_chain(error)), name, is_upload) or str(error)


def is_hub_error(error: BaseException) -> bool:
    """Whether `explain` has an explanation of its own."""
    return _explanation(list(_chain(error)), "", False) is not None


def is_network_error(error: BaseException) -> bool:
    """Whether there was no connection, or one that failed."""
    # OfflineModeIsEnabled is a ConnectionError; a file that is not in the cache is asked for only without a network.
    library = type(error).__module__.split(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError, LocalEntryNotFoundError)) or library in HTTP_LIBRARIES


def _explanation(chain: list[BaseException], name: str, is_upload: bool) -> str | None:
    flag = "--hub_token" if is_upload else "--token"
    elsewhere = "" if is_upload else f"there is no folder {name}, and "
    not_here = "" if is_upload else f", and {name} is neither a folder nor in the cache"
    for error in chain:
        if isinstance(error, GatedRepoError) or isinstance(error, DatasetNotFoundError) and "gated" in str(error):
            return (
                f"wrong access: {name} is gated, its owner decides who may read it; ask for access on its page, and "
                f"give your token with {flag} or by `hf auth login`"
            )
        if isinstance(error, RevisionNotFoundError) or isinstance(error, DatasetNotFoundError) and "Rev" in str(error):
            return f"wrong name: {name} has no such revision (branch, tag or commit)"
        if isinstance(error, (RepositoryNotFoundError, DatasetNotFoundError)):
            return (
                f"wrong name: {elsewhere}the hub has no such repository; or wrong access, if it is private: give a "
                f"token that opens it with {flag} or by `hf auth login`"
            )
        if isinstance(error, LocalTokenNotFoundError):
            return f"wrong access: there is no token; give one with {flag}, in HF_TOKEN, or by `hf auth login`"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            return f"wrong access: the hub does not take this token (of {flag}, HF_TOKEN or `hf auth login`)"
        if status == 403:
            return f"wrong access: this token (of {flag}, HF_TOKEN or `hf auth login`) is not allowed to do that"
        if status == 429 or status is not None and status >= 500:
            return f"the network: the hub answers with status {status}; try again later"
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return f"wrong name: the hub has {name}, but not the file that is needed"
        if isinstance(error, HFValidationError):
            return f"wrong name: {elsewhere}the hub has no names of this form"
    if any(map(is_network_error, chain)):
        if constants.HF_HUB_OFFLINE:
            return f"no network: HF_HUB_OFFLINE is set{not_here}"
        return f"the network: {constants.ENDPOINT} cannot be reached{not_here}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, the first cause last."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
