"""What settings are made of: words, finite numbers, lists and mappings, of a size that a person would write.

Whatever a YAML file, `--set` or a Python caller brings is checked here first, so that nothing behind it meets
a NUL byte in a path, an integer of a thousand digits, a list that contains itself, or a secret.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from gradwise.errors import RecipeError
from gradwise.text import SECRET, clipped, masked, shown

DEEPEST = 50
"""Levels of lists and mappings inside one another."""

_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_SECRET_KEY = re.compile(rf"(?i)(?:^token|(?:^|[_.-]){SECRET})$")


def plain(value: object, key: str = "", depth: int = 0) -> Any:
    """A copy of a value, tuples made lists.

    Args:
        value: what was read.
        key: its place in the recipe, for messages.
        depth: levels above it.

    Raises:
        RecipeError: it holds something that no setting can be, or a secret.
    """
    if depth > DEEPEST:
        raise RecipeError(
            f"{clipped(key)}: more than {DEEPEST} levels of lists and mappings; make it flatter."
        )
    if isinstance(value, dict):
        return {_name(name, key): plain(below, _below(key, name), depth + 1) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [plain(below, _below(key, position), depth + 1) for position, below in enumerate(value)]
    check_scalar(value, key or "recipe")
    return value


def check_scalar(value: object, key: str) -> None:
    """Raise RecipeError unless the value is None, a truth value, a finite number, or text without secrets."""
    problem = None
    if isinstance(value, bool | None):
        return
    if isinstance(value, int):
        problem = None if abs(value) < 2**63 else "integers have at most 19 digits"
    elif isinstance(value, float):
        problem = None if math.isfinite(value) else "input should be a finite number"
    elif not isinstance(value, str):
        problem = f"a setting is a word, a number, a list or a mapping, and no {type(value).__name__}"
    elif _NO_TEXT.search(value):
        problem = "text cannot hold NUL bytes or unpaired surrogates"
    elif ("://" in value or "hf_" in value) and masked(value) != value:
        problem = "this looks like a secret, and a recipe is copied into run directories"
    if problem:
        raise RecipeError(f"{clipped(key)}: {problem}; found {shown(value)}.")


def differences(there: object, here: object, key: str = "") -> Iterator[str]:
    """What differs between plain values, as parts of a sentence."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys([*there, *here]):
            yield from differences(there.get(name), here.get(name), _below(key, name))
    elif there != here:
        yield f"{key} was {there!r}, now {here!r}"


def _name(name: object, above: str) -> str:
    """A key of a mapping."""
    if not isinstance(name, str):
        raise RecipeError(
            f"{clipped(_below(above, shown(name)))}: keys are words; put quotes around it if it is one."
        )
    check_scalar(name, clipped(f"{above or 'recipe'}: a key"))
    if _SECRET_KEY.search(name):
        raise RecipeError(
            f"{clipped(_below(above, name))} is a secret, and a recipe is copied into run directories. Leave "
            "it out and put it into the environment (HF_TOKEN for the hub), also when a run is resumed."
        )
    return name


def _below(above: str, name: object) -> str:
    return f"{above}.{name}" if above else str(name)
