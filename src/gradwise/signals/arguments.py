"""What `gradwise.collect` is given: each argument is of its kind, or named."""

import os
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from gradwise.errors import SignalError
from gradwise.text import shown


class _Kind(NamedTuple):
    description: str
    fits: Any


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _names(value: object) -> bool:
    parts = [value] if isinstance(value, str) else value
    return isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts)


def _or_none(fits: Any) -> Any:
    return lambda value: value is None or fits(value)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_KINDS = {
    "model": _Kind(
        "a model with parameters", lambda m: isinstance(m, nn.Module) and any(True for _ in m.parameters())
    ),
    "collator": _Kind("a function that makes a batch of samples", _or_none(callable)),
    "parameters": _Kind("'blocks', 'all', or patterns of names", _names),
    "grad_dim": _Kind(
        "from 1 to 16,777,216, or None for whole gradients",
        _or_none(lambda n: _whole(n) and 1 <= n <= 2**24),
    ),
    "batch_tokens": _Kind("at least 1, a whole number", lambda n: _whole(n) and n >= 1),
    "store": _Kind("a folder", _or_none(lambda path: isinstance(path, str | os.PathLike))),
    "seed": _Kind("a whole number from 0", lambda n: _whole(n) and n >= 0),
    "layer": _Kind("the number of a block, or None for the last hidden state", _or_none(_whole)),
    "autocast": _Kind("torch.bfloat16 or torch.float16, or None", _or_none(lambda t: t in _FLOATS)),
    "tell": _Kind("a function that takes a sentence", _or_none(callable)),
}


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise SignalError for the first argument that is not of its kind; unknown names are passed over."""
    for name, (description, fits) in _KINDS.items():
        if name in arguments and not fits(arguments[name]):
            raise SignalError(f"{name} must be {description}; found {_description(arguments[name])}.")


def _description(value: object) -> str:
    return f"a {type(value).__name__} without any" if isinstance(value, nn.Module) else shown(value)
