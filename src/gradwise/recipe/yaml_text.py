"""YAML in and out: read as everyone expects it, within bounds, and written so that every reader agrees."""

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from gradwise.errors import RecipeError
from gradwise.plain import DEEPEST
from gradwise.text import clipped, shown

LARGEST = 10_000_000
"""Bytes in a file, and characters once its aliases are expanded."""

PER_VALUE = 40
"""Characters that each value counts besides its own: a list of a million zeros takes long, too."""

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def loader_over(base: Any) -> Any:
    """A loader class that reads alike whichever of PyYAML's parsers, C's or Python's, is beneath it.

    It departs from YAML 1.1 where that has surprises: 2e-5 and 1.5e5 are numbers; `no`, `010`, `1:30` and
    2024-01-31 are words; a key that stands twice is refused. Of tags it knows those of JSON's types.
    """

    class Loader(base):
        yaml_implicit_resolvers: Any = {}  # noqa: RUF012
        yaml_constructors = {  # noqa: RUF012
            tag: make
            for tag, make in yaml.SafeLoader.yaml_constructors.items()
            if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
        }

        def flatten_mapping(self, node: Any) -> None:
            # Here and only once: PyYAML puts the keys of `<<` among the mapping's own, at times before it
            # builds the mapping, and they are no duplicates.
            if not hasattr(node, "checked"):
                self._check_keys(node)
                node.checked = True
            super().flatten_mapping(node)

        def _check_keys(self, node: Any) -> None:
            seen = set()
            for key, _ in node.value:
                # PyYAML keeps the last of two equal keys and gives no warning, so that the first would have
                # no effect.
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    problem = f"the key {clipped(key.value)} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)

    for kind, form, first in _WORDS_THAT_ARE_VALUES:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(form), list(first))
    return Loader


_NUMBER = "-+.0123456789"
_FLOAT = (
    "float",
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$",
    _NUMBER,
)
_WORDS_THAT_ARE_VALUES: list[tuple[str, str, Any]] = [
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0b[01]+)$", _NUMBER),
    _FLOAT,
    ("merge", r"^<<$", "<"),
]
_Loader = loader_over(_BASE)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around everything that this reader or one of YAML 1.1 would not read as a string."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT[1]), list(_NUMBER))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises RecipeError, with the line at which it breaks."""
    contents = parse(_text(path), clipped(str(path), 300))
    if not isinstance(contents, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of sections (model, data, train, ...); found {shown(contents)}."
        )
    return contents


def parse(text: str, source: str, loader: Any = _Loader) -> Any:
    """The value of a YAML text of at most `LARGEST` characters, its aliases expanded, and `DEEPEST` levels.
    `source` names the text in messages; `loader` is made by `loader_over`. Raises RecipeError for other
    texts."""
    try:
        _check_size(text, source, loader)
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark and "\n" in text else ""
        # The reader of PyYAML has its problem elsewhere: a character that YAML does not know.
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable"
        raise RecipeError(f"{source}{where}: not valid YAML: {problem}.") from None
    except (ValueError, KeyError, IndexError):  # thousands of digits, `!!int x`, `!!bool x`
        raise RecipeError(f"{source}: a number or truth value in it cannot be read as one.") from None


def to_yaml(values: dict[str, Any]) -> str:
    """YAML in the order of the fields, `method` first in each section."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _text(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise RecipeError(f"Cannot read the recipe {path}: it is no regular file; save it in one.")
        if status.st_size > LARGEST:
            raise _too_large(str(path))
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # a ValueError for NUL in the path, and where it is not UTF-8
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"Cannot read the recipe {clipped(str(path), 300)}: {reason}.") from None


def _check_size(text: str, source: str, loader: Any) -> None:
    """Refuse a text that would become too large or too deep, before anything is built from it."""
    total, sizes = len(text), {}
    above: list[tuple[str | None, int]] = []
    # Of events, where an alias is one event: aliases of aliases share one object once they are loaded, and
    # multiply when the recipe is copied or turned into JSON.
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.CollectionStartEvent):
            above.append((event.anchor, total))
            total += PER_VALUE
            if len(above) > DEEPEST:
                raise RecipeError(
                    f"{source}, line {event.start_mark.line + 1}: more than {DEEPEST} levels of lists and "
                    "mappings; make it flatter."
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = above.pop()
            sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = PER_VALUE + len(event.value)
            total += PER_VALUE
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in above]:
                line = event.start_mark.line + 1
                raise RecipeError(f"{source}, line {line}: *{event.anchor} stands inside what it names.")
            total += sizes.get(event.anchor, 0)
        if total > LARGEST + len(text):
            raise _too_large(source)


def _too_large(source: str) -> RecipeError:
    return RecipeError(
        f"{clipped(source, 300)} is too large for a recipe, which holds at most {LARGEST // 10**6} MB with "
        "its aliases expanded; give many data files as a folder."
    )
