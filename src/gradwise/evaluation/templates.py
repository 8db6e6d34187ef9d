"""Jinja templates over the fields of a record, as lm-eval has them, without its guesses.

lm-eval reads every rendered text that looks like a Python literal as one, so the answer "12" becomes a number
and "[1]" a list. Here a lone expression such as `{{choices.text}}` gives its value, and every other template
gives text.
"""

import re
from collections.abc import Mapping
from typing import Any

import jinja2

from gradwise.data.records import few, reason
from gradwise.data.sandbox import Sandbox
from gradwise.errors import DataError, RecipeError

_LONE = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)


def _replace(text: str, pattern: str, by: str, count: int = 0) -> str:
    return re.sub(pattern, by, text, count=count)


class _Sandbox(Sandbox):
    """A sandbox that writes no null: Python would make the word None of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.finalize = self._written

    def _written(self, value: object) -> Any:
        if value is None:
            raise DataError("a value is null; correct the record, or write {{... or ''}} where one may be")
        return self._built(value)


# Sandboxed: recipes are passed around, and reading one must not run arbitrary code.
_JINJA = _Sandbox({"regex_replace": _replace}, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


class Template:
    """A template of a recipe: Jinja, or the name of a column. `key` is its key in the recipe, for messages.
    Raises RecipeError if it is not valid Jinja."""

    def __init__(self, source: str, key: str) -> None:
        self.source, self.key = source, key
        try:
            self._render = _JINJA.from_string(source)
            self._evaluate = self._lone_expression()
        except jinja2.TemplateSyntaxError as error:
            raise RecipeError(f"{key}: not valid Jinja, line {error.lineno}: {_one_line(error)}.") from None
        except Exception as error:  # too deep or too long for Python's own compiler
            raise RecipeError(f"{key}: cannot be compiled ({_one_line(error)}).") from None

    def _lone_expression(self) -> Any:
        text = self.source.strip()
        nodes = [node for output in _JINJA.parse(text).body for node in getattr(output, "nodes", [output])]
        match = _LONE.fullmatch(text)
        # The pattern alone also fits `{{a}} {{b}}`, from the first brace to the last.
        if match is None or len(nodes) != 1:
            return None
        return _JINJA.compile_expression(match[1], undefined_to_none=False)

    def text(self, record: Mapping[str, Any]) -> str:
        """The template's text for a record; raises DataError, also for a null."""
        if self.source in record:
            return str(self._not_null(record[self.source]))
        return self._tried(lambda: self._render.render(record), record)

    def value(self, record: Mapping[str, Any]) -> Any:
        """The template's value for a record: that of a column or a lone expression, otherwise its text."""
        if self.source in record:
            return self._not_null(record[self.source])
        if self._evaluate is None:
            return self.text(record)
        return self._not_null(self._tried(lambda: _defined(self._evaluate(record)), record))

    def _not_null(self, value: Any) -> Any:
        if value is None:
            raise DataError(f"{_last(self.key)}: {self.source[:40]!r} is null; correct the record")
        return value

    def check_varies(self, record: Mapping[str, Any]) -> None:
        """Refuse a text that is the same for every record: most likely the misspelt name of a column."""
        if not (self.source in record or "{{" in self.source or "{%" in self.source):
            raise DataError(
                f"{_last(self.key)}: {self.source[:40]!r} is not a column, nor a template with "
                f"{{{{...}}}} in it; {_columns(record)}"
            )

    def _tried(self, render: Any, record: Mapping[str, Any]) -> Any:
        _JINJA.refill(record)
        try:
            return render()
        except Exception as error:  # whatever an expression over arbitrary values may raise
            raise DataError(f"{_last(self.key)}: {_one_line(error)}; {_columns(record)}") from None


def _defined(value: object) -> Any:
    if isinstance(value, jinja2.Undefined):
        str(value)  # a strict one says what is missing
    return value


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _columns(record: Mapping[str, Any]) -> str:
    return f"the record's columns: {few(sorted(map(str, record)))}"


def _one_line(error: Exception) -> str:
    return reason(error).rstrip(".")
