"""Jinja whose work is counted, so that a template that never ends gives an error message.

Templates come from the hub and from other people. Jinja's sandbox keeps them away from files and from the
interpreter, but lets them loop for ever or build gigabytes of text. Here every iteration, every call and
every hundred characters cost one step of a budget. Steps are counted rather than seconds, so that a template
ends in the same way on every machine.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from gradwise.errors import DataError

STEPS = 1_000_000
"""Steps of one rendering, a few seconds; long inputs get more (`Sandbox.refill`)."""

_STEPS_PER_VALUE = 100
_STEPS_PER_CHARACTER = 4
_STEPS_PER_CALL = 5
_CHARACTERS = 100  # written in one step

_LOOP, _BUILT, _JOINED = "gradwise loop", "gradwise built", "gradwise joined"
"""Names of the filters that the parser adds. They hold spaces, so no template can name them."""


class RunawayError(DataError):
    """A template that used up its steps."""


class Sandbox(ImmutableSandboxedEnvironment):
    """A sandboxed environment with a budget, for one rendering at a time. `filters` are added by name;
    `random` and `lipsum`, which give another result each time, are missing."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, filters: dict[str, Callable[..., Any]] | None = None, **options: Any) -> None:
        super().__init__(finalize=self._built, **options)
        del self.filters["random"], self.globals["lipsum"]
        for name, function in {**self.filters, **(filters or {})}.items():
            self.filters[name] = self._counted(name, function)
        guards = {_LOOP: self._iterated, _BUILT: self._built, _JOINED: self._joined}
        self.filters |= {name: _at_run_time(function) for name, function in guards.items()}
        self._steps_left = STEPS

    def refill(self, values: object) -> None:
        """Start a new budget for a rendering of `values`, which adds steps for each value and character."""
        self._steps_left = STEPS
        for leaf in leaves(values):
            self._steps_left += _STEPS_PER_VALUE + (
                _STEPS_PER_CHARACTER * len(leaf) if isinstance(leaf, str) else 0
            )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Counting(self).visit(super()._parse(source, name, filename))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._spend(_STEPS_PER_CALL)
        if isinstance(obj, LoopContext) and args:  # a recursive loop
            self._spend(_length(args[0]))
        method: Any = getattr(obj, "__wrapped__", obj)  # the sandbox wraps `format`
        text = getattr(method, "__self__", None)
        if isinstance(text, str):
            self._spend_characters(_growth(method.__name__, text, [*args, *kwargs.values()]))
        return self._built(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            self._spend((bits // 1000) ** 2)  # about what multiplying costs
        elif operator == "+" and isinstance(left, list | tuple):
            self._spend(len(left) + _length(right))
        elif operator == "*":
            for times, repeated in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(repeated, str | bytes | list | tuple):
                    each = 1 if isinstance(repeated, str | bytes) else _CHARACTERS
                    self._spend_characters(times * len(repeated) * each)
        elif operator == "%" and isinstance(left, str):
            self._spend_characters(_growth("format", left, right if isinstance(right, tuple) else [right]))
        return self._built(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # `translate` may replace each character by a text of any length, which no count foresees.
        grows = isinstance(obj, str) and attr == "translate"
        return not grows and super().is_safe_attribute(obj, attr, value)

    def _spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise RunawayError(f"the template does not end: it was stopped after {STEPS:,} steps; correct it")

    def _spend_characters(self, count: int) -> None:
        self._spend(max(0, count) // _CHARACTERS)

    def _built(self, value: object) -> Any:
        """Charge for a value that a template made or writes."""
        most = (self._steps_left + 1) * _CHARACTERS
        size = len(value) if isinstance(value, str) else _size(value, most)
        self._spend(1 + size // _CHARACTERS)
        return value

    def _joined(self, values: list[Any]) -> str:
        texts = [value if isinstance(value, str) else str(self._built(value)) for value in values]
        self._spend(1 + sum(map(len, texts)) // _CHARACTERS)
        return "".join(texts)

    def _iterated(self, values: Any) -> Any:
        if hasattr(values, "__len__"):
            self._spend(len(values))
            return values
        # A generator has no length, so each of its values is charged as it comes.
        return self._one_by_one(values) if hasattr(values, "__iter__") else values

    def _one_by_one(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._spend(1)
            yield value

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skip = int(hasattr(function, "jinja_pass_arg"))  # the environment or the context comes first

        @wraps(function)
        def counted(*args: object, **kwargs: object) -> Any:
            value = args[skip] if len(args) > skip else ""
            if not isinstance(value, str):
                self._spend(_length(value))
            if name in _GROWING:
                rest = [*args[skip + 1 :], *kwargs.values()]
                if name == "join":
                    # `join` gets the list, but it is the separator that is repeated.
                    value, rest = str(rest[0]) if rest else "", [value]
                self._spend_characters(_growth(name, value, rest))
            return self._built(function(*args, **kwargs))

        return counted


class _Counting(NodeTransformer):
    """Puts counting filters around all that a template loops over, builds and writes."""

    def __init__(self, environment: Sandbox) -> None:
        self._environment = environment

    def _filtered(self, node: Any, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=self._environment)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._filtered(node.iter, _LOOP)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno, environment=self._environment)
        return self._filtered(parts, _JOINED)

    def visit_List(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        stored = getattr(node, "ctx", "load") != "load"  # `for a, b in ...`
        plain = all(isinstance(item, nodes.Const) for item in getattr(node, "items", []))
        return node if stored or plain else self._filtered(node, _BUILT)

    visit_Tuple = visit_Dict = visit_List

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return self._filtered(nodes.Const(node.data, lineno=node.lineno), _BUILT)


def _at_run_time(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """A filter that Jinja does not evaluate while it compiles."""
    return jinja2.pass_context(lambda _, value: function(value))


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


def leaves(value: object) -> Iterator[Any]:
    """All that nested containers hold, each as often as it would be written."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, Namespace):
            value = object.__getattribute__(value, "_Namespace__attrs")
        if isinstance(value, dict):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            stack += value
        yield value


def _size(value: object, most: int) -> int:
    """The cost of a value in characters: each part costs at least a step; counting stops above `most`."""
    total = 0
    for leaf in leaves(value):
        if isinstance(leaf, str):
            total += len(leaf)
        elif isinstance(leaf, int):
            total += leaf.bit_length() // 8
        total += _CHARACTERS
        if total > most:
            break
    return total


_GROWING = {"batch", "center", "format", "indent", "join", "replace", "slice", "tojson", "wordwrap"}
"""Filters whose result may be much longer than their input."""


def _growth(name: str, value: Any, arguments: Any) -> int:
    """A lower bound on the characters that a method of a text, or a filter, adds to its input."""
    text = value if isinstance(value, str) else ""
    numbers = [abs(item) for item in arguments if isinstance(item, int) and not isinstance(item, bool)]
    texts = [item for item in arguments if isinstance(item, str)]
    width, longest = max(numbers, default=0), max(map(len, texts), default=0)
    match name:
        case "center" | "ljust" | "rjust" | "zfill":
            return width
        case "batch" | "slice":
            return width * _CHARACTERS
        case "expandtabs":
            return width * text.count("\t")
        case "indent":
            return max(width, longest) * (text.count("\n") + 1)
        case "tojson":
            return max(width, longest) * _size(value, STEPS)
        case "replace" if len(texts) > 1:
            return text.count(texts[0]) * len(texts[1])
        case "join" if arguments:
            return len(text) * _length(arguments[0])
        case "wordwrap":
            return longest * len(text)
        case "format" | "format_map":
            # A width may stand in the text itself, or come with the arguments: `%*d`, `{:{}}`.
            widths = [int(digits[:20]) for digits in re.findall(r"\d{4,}", text)]
            return sum(widths) + (width if re.search(r"%[^%a-zA-Z]*\*|\{[^{}]*\{", text) else 0)
    return 0
