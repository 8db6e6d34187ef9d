"""What every section of a recipe has in common: frozen, documented field by field, and strict."""

import ast
import difflib
import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import Any, ClassVar, Self, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gradwise.errors import RecipeError
from gradwise.plain import plain
from gradwise.text import shown


class Settings:
    """Base of the frozen dataclasses that make up a recipe.

    A field's docstring stands beneath it and becomes its description in the JSON schema. Values are checked
    against the field's annotation however the object is made, so that `gw.Grass(active=-1)` fails where it is
    written.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    left_to_run: ClassVar[tuple[str, ...]] = ()
    """Fields that a run decides by what it finds on its machine where they have their default, and writes
    into its recipe before it uses them."""

    found_in_data: ClassVar[tuple[str, ...]] = ()
    """Those of them that follow from the data and the model, and not from the machine alone."""

    def __post_init__(self) -> None:
        for name, adapter in _field_adapters(type(self)).items():
            try:
                value = adapter.validate_python(getattr(self, name))
            except ValidationError as error:
                raise RecipeError(_sentence(type(self).__name__, name, error)) from None
            for part in value if isinstance(value, list) else [value]:
                if not isinstance(part, Settings):
                    plain(part, f"{type(self).__name__}.{name}")
            object.__setattr__(self, name, value)
        self.check()

    def filled_from(self, earlier: "Settings | None") -> Self:
        """These settings with what an earlier run of the same method found, where they leave that open."""
        if type(self) is not type(earlier):
            return self
        unset = [name for name in self.left_to_run if getattr(self, name) == default_of(type(self), name)]
        earlier_values = {name: getattr(earlier, name) for name in unset}
        return replace(self, **earlier_values) if earlier_values else self  # type: ignore[type-var]

    def check(self) -> None:
        """Refuse values that contradict each other; raises RecipeError. Nothing by default."""


def same_settings(stored: Any, settings: Settings) -> bool:
    """Whether stored plain values stand for these settings; what an older version did not have is default."""
    try:
        return type(settings)(**stored) == settings
    except (RecipeError, TypeError):
        return False


def default_of(cls: type[Settings], name: str) -> Any:
    """The default of a field."""
    return next(field.default for field in fields(cls) if field.name == name)  # type: ignore[arg-type]


@cache
def _field_adapters(cls: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(cls)}


def _sentence(owner: str, name: str, error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join([owner, name, *(str(part) for part in first["loc"])])
    if first["type"] == "union_tag_invalid":
        context = first.get("ctx", {})  # of this kind of error, always there
        tags = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
        return f"{key}: unknown method {shown(context['tag'])}{nearest(context['tag'], tags)}"
    if first["type"] in ("union_tag_not_found", "model_attributes_type"):
        return (
            f"{key}: give settings, a mapping with a `method` and its settings, or a method's name; found "
            f"{shown(first['input'])}."
        )
    return refusal(key, first["msg"], first["input"])


def refusal(key: str, message: str, value: object) -> str:
    """A sentence on a value that pydantic refuses with a message."""
    return f"{key}: {message[0].lower()}{message[1:]}; found {shown(value)}."


def field_descriptions(cls: type[Settings]) -> dict[str, str]:
    """The docstrings beneath the fields of a settings class, those of its bases among them.

    pydantic puts a class's own field docstrings into the schema, but not inherited ones.
    """
    owners = [owner for owner in reversed(cls.__mro__) if issubclass(owner, Settings)]
    return {name: text for owner in owners for name, text in _field_descriptions(owner).items()}


@cache
def _field_descriptions(cls: type[Settings]) -> dict[str, str]:
    definition = ast.parse(dedent(inspect.getsource(cls))).body[0]
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(assignment.target): inspect.cleandoc(str(text.value.value))
        for assignment, text in pairwise(definition.body)
        if isinstance(assignment, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def from_text(key: str, **others: str) -> Callable[[object], Any]:
    """Makes a text the mapping that it is short for, with the text under `key`; for pydantic."""
    return lambda value: {**others, key: value} if isinstance(value, str) else value


def nearest(name: str, candidates: list[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them."""
    close = difflib.get_close_matches(name[:100], candidates, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(candidates))}." if candidates else "."
