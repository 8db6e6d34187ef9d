"""Builds a recipe from plain values, and says in sentences what is wrong with them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from gradwise.errors import RecipeError
from gradwise.evaluation.settings import Metrics
from gradwise.recipe.tree import METHOD_SECTIONS
from gradwise.settings import Settings, nearest
from gradwise.text import clipped, shown

T = TypeVar("T")

MAX_MISTAKES = 20
"""Mistakes that one message lists."""


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Put the name of the file in front of what is wrong with it."""
    try:
        yield
    except RecipeError as error:
        # Several mistakes stand below each other.
        apart = "\n  " if "\n" in str(error) else " "
        raise RecipeError(f"{clipped(source, 300)}:{apart}{error}") from None


def validate(adapter: TypeAdapter[T], values: dict[str, Any], root: type) -> T:
    """Build a `root` from plain values, or raise one RecipeError that lists everything wrong, a line each."""
    try:
        # Through JSON, because strict JSON is what YAML means: "3" is no number, a list is a tuple.
        return adapter.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        # Each wrong entry of a list is an error of its own: a list of a million would give as many sentences.
        first = error.errors(include_url=False)[: 10 * MAX_MISTAKES]
        lines = sorted({_sentence(entry, root) for entry in _most_specific(first, root)})
        more = ["and more."] if len(lines) > MAX_MISTAKES else []
        raise RecipeError("\n  ".join(lines[:MAX_MISTAKES] + more)) from None


def _most_specific(errors: list[Any], root: type) -> list[Any]:
    """Without the other branches of a union, which complain of what one branch has already examined."""
    keys = [_key(error, root) for error in errors]
    above = {key[:end] for key in keys for end, letter in enumerate(key) if letter == "."}
    return [error for error, key in zip(errors, keys, strict=True) if key not in above]


def _key(error: Any, root: type) -> str:
    branches = _branches(root)
    return ".".join(str(part) for part in error["loc"] if str(part) not in branches) or "recipe"


def _sentence(error: Any, root: type) -> str:
    location = [str(part) for part in error["loc"]]
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    key = clipped(_key(error, root))
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {key}{nearest(location[-1], _field_names(location[:-1], root))}"
    if kind in ("missing", "missing_argument"):
        return f"{key} is missing; give it a value."
    if kind == "union_tag_not_found":
        return f"{key} needs a {_chooser(error)}; found {shown(value)}."
    if kind == "union_tag_invalid":
        tags = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
        chooser = _chooser(error)
        return f"{key}.{chooser}: unknown {chooser} {shown(context['tag'])}{nearest(context['tag'], tags)}"
    message = error["msg"].replace("an object", "a mapping of keys").replace("a valid array", "a list")
    return f"{key}: {message[0].lower()}{message[1:]}; found {shown(value)}."


def _chooser(error: Any) -> str:
    """The key by which one of several settings classes is chosen: `method` or `kind`."""
    return error["ctx"]["discriminator"].strip("'")


def _field_names(location: list[str], root: type) -> list[str]:
    """Names of the fields of the settings class that stands at `location` in the recipe."""
    classes: list[Any] = [root]
    for part in location:
        below = [
            member
            for cls in classes
            for member in _members(get_type_hints(cls, include_extras=True).get(part))
        ]
        tagged = [cls for cls in classes if part == _tag(cls) or part == cls.__name__]
        classes = tagged or below or classes
    return sorted({field.name for cls in classes for field in fields(cls)})


def _members(annotation: Any) -> list[Any]:
    """The settings classes named anywhere in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated, list, tuple):
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return []


def _tag(cls: Any) -> str | None:
    tags: list[Any] = [field.default for field in fields(cls) if field.name in ("method", "kind")]
    return tags[0] if tags else None


_OTHER_BRANCHES = {"Source", "list[Source]", "str", "[key]"}


@cache
def _branches(root: type) -> frozenset[str]:
    """Parts of a pydantic location that stand for the branch of a union rather than for a key."""
    hints = get_type_hints(root, include_extras=True)
    methods = [member for section in METHOD_SECTIONS for member in _members(hints[section])]
    kinds = _members(get_type_hints(Metrics, include_extras=True)["tasks"])
    return frozenset({*(str(_tag(cls)) for cls in (*methods, *kinds)), *_OTHER_BRANCHES})
