"""The errors that the libraries raise while a model is loaded, as one sentence each."""

import errno
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)

from gradwise.errors import GradwiseError, RecipeError
from gradwise.recipe import Model
from gradwise.run.model_files import local_folder
from gradwise.text import described

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@contextmanager
def explained(settings: Model, what: str) -> Iterator[None]:
    """Turn whatever is raised inside into a RecipeError of one sentence. `what` is being loaded: "model",
    "tokenizer", "configuration" or "adapter"."""
    try:
        yield
    except GradwiseError:
        raise
    # The libraries check little of what they read, so a damaged file can raise anything.
    except Exception as error:
        raise RecipeError(_sentence(settings, what, error)) from error


def _sentence(settings: Model, what: str, error: BaseException) -> str:
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__  # which says the same in one line
    reason = described(error)
    if isinstance(error, MemoryError) or "allocate memory" in reason or "out of memory" in reason:
        return f"model.name: there is not enough memory for {settings.name} ({reason})."
    if settings.attention is not None and _in_attention(error):
        return f"model.attention: {settings.attention} cannot be used here ({reason})."
    if local_folder(settings.name) is None:
        return f"model.name: {_hub_sentence(settings, what, error, reason)}"
    if settings.gguf_file is not None:
        return f"model.gguf_file: no {what} can be loaded from {settings.gguf_file} ({reason})."
    return f"model.name: transformers cannot load the {what} in {settings.name} ({reason})."


def _hub_sentence(settings: Model, what: str, error: BaseException, reason: str) -> str:
    name = settings.name
    causes = list(_causes(error))
    if _first(causes, GatedRepoError):
        return f"{name} is gated; ask for access on its page on the hub, and log in: hf auth login."
    if _first(causes, RepositoryNotFoundError):
        return (
            f"there is no folder {name} here and no such model on the hub, or it is private; check the name, "
            "or log in: hf auth login."
        )
    if _first(causes, RevisionNotFoundError):
        return f"{name} on the hub has no revision {settings.revision}; see its page for those it has."
    # Before the network's errors: a full disk interrupts a download, too.
    full = _first(causes, OSError, lambda cause: cause.errno in _FULL)
    if full is not None:
        return f"the hub's cache cannot take {name} ({full}); make room there, or move it with HF_HOME."
    answer = _first(causes, HfHubHTTPError, lambda cause: not isinstance(cause, EntryNotFoundError))
    if answer is not None:
        return f"the hub refuses to give {name} ({' '.join(str(answer).split())[:200]}); try again later."
    if _first(causes, LocalEntryNotFoundError):
        return (
            f"there is no folder {name} here, the hub's cache does not hold the model, and the hub cannot be "
            f"reached; give a local folder, or download it where there is a network: hf download {name}."
        )
    return f"transformers cannot load the {what} of {name} ({reason})."


def _in_attention(error: BaseException) -> bool:
    """Whether it was raised while the attention implementation was being chosen."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    return any("attn" in name or "attention" in name for name in names)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first(
    causes: list[BaseException], kind: type[BaseException], condition: Callable[..., bool] = lambda _: True
) -> BaseException | None:
    return next((cause for cause in causes if isinstance(cause, kind) and condition(cause)), None)
