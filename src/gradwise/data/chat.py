"""Conversations through a chat template: the text, and which of its characters the model is to learn.

A template that marks the assistant's words with `{% generation %}` is believed. For any other, a turn's words
are what the rendering gains between the prompt that asks for the turn and the conversation that holds it.
That is only sound where each rendering begins with the one before, so this is checked.

Templates run in a sandbox of our own that counts their steps and has a fixed date. transformers renders the
same text, but a template that loops for ever hangs it, and a template that asks for the date gives other text
each day.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jinja2
import jinja2.ext
from jinja2 import nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from gradwise.data.messages import REASONING, Chat
from gradwise.data.records import UnreadableError, few, reason
from gradwise.data.sandbox import RunawayError, Sandbox, leaves
from gradwise.data.settings import at_home
from gradwise.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
T = TypeVar("T")

DATE = datetime(2024, 7, 26)
"""The date that every template sees: the one that Llama 3.1's takes where it has no clock."""

_START, _END = "\ufdd0", "\ufdd1"
"""Code points that are no characters; they stand around the assistant's words while a template renders."""

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %}` around the assistant's words."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{_START}{caller()}{_END}"


@cache
def _environment() -> Sandbox:
    """What transformers gives to templates, in our sandbox."""
    theirs = chat_template_utils._compile_jinja_template("").environment
    filters = {name: function for name, function in theirs.filters.items() if name != "random"}
    sandbox = Sandbox(filters, trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    sandbox.add_extension(_Generation)
    sandbox.globals |= {name: value for name, value in theirs.globals.items() if name != "lipsum"}
    # A template that asks for the date would give other tokens each day, and the fingerprint of the data with
    # them.
    sandbox.globals["strftime_now"] = DATE.strftime
    return sandbox


@lru_cache
def _compiled(template: str) -> tuple[jinja2.Template, frozenset[str]]:
    """A template ready to render, and every word in it."""
    try:
        return _environment().from_string(template), frozenset(re.findall(r"\w+", template))
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"the chat template is not valid Jinja, line {error.lineno}: {error.message}"
        ) from None
    except Exception as error:  # too deep or too long for Python's own compiler
        raise DataError(f"the chat template cannot be compiled ({reason(error)})") from None


class Written(NamedTuple):
    """A conversation as a template writes it, and the spans between its marks; None if it has none."""

    text: str
    marked: list[Span] | None


@dataclass
class ChatTemplate:
    """A tokenizer's chat template, or `jinja` in its place."""

    tokenizer: PreTrainedTokenizerBase
    jinja: str | None = None
    _unread: set[str] = field(default_factory=set)
    _dated: bool = False
    _changed: int = 0

    @property
    def notes(self) -> list[str]:
        """What the user should know about the conversations written so far."""
        notes = []
        if self._unread:
            keys = few(sorted(self._unread))
            notes.append(f"keys of messages that the chat template does not write: {keys}")
        if self._dated:
            notes.append(f"the chat template asks for today's date; it always gets {DATE:%d %B %Y}")
        if self._changed:
            count = f"{self._changed:,}"
            notes.append(
                f"turns of the assistant that the chat template does not write word for word: {count}"
            )
        return notes

    def write(self, chat: Chat) -> Written:
        """Render a conversation.

        Raises:
            UnreadableError: the template refuses this conversation, or does not write all of it.
            DataError: no template, or one of no use for any conversation.
        """
        template = self._template(chat.tools)
        _, words = _compiled(template)
        self._check_written(chat, words)
        self._dated |= "strftime_now" in words
        _check_unmarked(chat.messages)
        text, spans = _spans(self._render(chat, len(chat.messages)))
        contents = (chat.messages[number].get("content", "").strip() for number in chat.turns)
        self._changed += sum(content not in text for content in contents)
        return Written(text, spans if _MARKS.search(template) else None)

    def prompt(self, messages: list[dict[str, Any]]) -> str:
        """A conversation up to where the assistant's turn begins; raises as `write`."""
        _check_unmarked(messages)
        return _spans(self._render(Chat(messages), len(messages), asking=True))[0]

    def spans(self, chat: Chat, written: Written, limit: int) -> list[Span]:
        """The characters of a conversation to learn, as far as they begin before `limit`.

        Raises:
            UnreadableError, DataError: as `write`; and where the template does not show where the assistant
                speaks.
        """
        text, marked = written
        if marked is None:
            return self._by_prefix(chat, text, limit)
        turns = [number for number, message in enumerate(chat.messages) if message["role"] == "assistant"]
        # Every turn of the assistant is learned, so that the template's own marks are the answer.
        if turns == chat.turns:
            return marked
        if len(turns) == len(marked):
            learned = set(chat.turns)
            return [span for number, span in zip(turns, marked, strict=True) if number in learned]
        words = self._by_prefix(chat, text, limit)
        return [(max(a, c), min(b, d)) for a, b in marked for c, d in words if max(a, c) < min(b, d)]

    def _template(self, tools: list[Any] | None) -> str:
        if self.jinja is None and not self.tokenizer.chat_template:
            raise DataError(
                "the tokenizer has no chat template: take the tokenizer of an instruction-tuned model, or "
                "give a Jinja template, or the path of one, as data.chat_template"
            )
        try:
            return self.tokenizer.get_chat_template(self.jinja, tools)
        except ValueError as error:
            raise DataError(f"the tokenizer's chat template cannot be chosen ({error})") from None

    def _check_written(self, chat: Chat, words: frozenset[str]) -> None:
        """Refuse what would be lost without a word, and note the rest."""
        if chat.tools and "tools" not in words:
            raise UnreadableError(f"it has tools, which the chat template does not write; {_MEND}")
        for number, message in enumerate(chat.messages, start=1):
            for key in ("tool_calls", "function_call", REASONING[0]):
                names = REASONING if key == REASONING[0] else (key,)
                if key in message and words.isdisjoint(names):
                    raise UnreadableError(
                        f"message {number} has `{key}`, which the chat template does not write; {_MEND}"
                    )
            self._unread.update(set(message) - {"role", "content", *REASONING} - words)

    def _by_prefix(self, chat: Chat, text: str, limit: int) -> list[Span]:
        spans = []
        for number in chat.turns:
            start = len(self._generation_prompt(chat, number, text))
            if start >= limit:
                break
            spans.append((start, len(self._prefix(chat, number + 1, text))))
        return spans

    def _generation_prompt(self, chat: Chat, number: int, text: str) -> str:
        """The prompt that asks for a turn, with which the whole conversation must begin."""
        if number == 0:
            raise UnreadableError(
                "the conversation starts with the assistant, whose turn can only be found in a chat template "
                "with {% generation %} marks"
            )
        prompt, _ = _spans(self._render(chat, number, asking=True))
        if text.startswith(prompt):
            return prompt
        self._prefix(chat, number, text)  # or earlier turns are written differently
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, text, strict=False)))
        raise DataError(
            f"this chat template's generation prompt ends in {prompt[shared:].strip()[:60]!r}, but it writes "
            f"finished turns without that, so the assistant's words cannot be located; {_LOCATE}"
        )

    def _prefix(self, chat: Chat, count: int, text: str) -> str:
        """The first `count` messages rendered; `text`, the whole conversation, must begin with them."""
        if count == len(chat.messages):
            return text
        # Only where each rendering begins with the one before are the gained characters the turn's words.
        prefix, _ = _spans(self._render(chat, count))
        if not text.startswith(prefix):
            raise DataError(
                "this chat template writes earlier turns differently once later ones follow, so the "
                f"assistant's words cannot be located; {_LOCATE}"
            )
        return prefix

    def _render(self, chat: Chat, count: int, asking: bool = False) -> str:
        template, _ = _compiled(self._template(chat.tools))
        values = {
            **self.tokenizer.special_tokens_map,
            "messages": chat.messages[:count],
            "tools": chat.tools,
            "documents": None,
            "add_generation_prompt": asking,
        }
        _environment().refill(values)
        return _tried(lambda: template.render(values))


_MEND = "leave it out, or give a template that does as data.chat_template"
_LOCATE = "give one with {% generation %} marks as data.chat_template, or set data.loss_on: all"


def _check_unmarked(messages: list[dict[str, Any]]) -> None:
    """Raise UnreadableError for marks in the messages, which would be taken for the template's own."""
    if any(isinstance(leaf, str) and (_START in leaf or _END in leaf) for leaf in leaves(messages)):
        raise UnreadableError("its text holds U+FDD0 or U+FDD1, which are no characters")


def _spans(marked: str) -> tuple[str, list[Span]]:
    """The text without marks, and the spans that they enclosed."""
    pieces, spans, at = [], [], 0
    for piece in re.split(f"([{_START}{_END}])", marked):
        if piece == _START:
            spans.append((at, at))
        elif piece == _END:
            spans[-1] = (spans[-1][0], at)
        else:
            pieces.append(piece)
            at += len(piece)
    return "".join(pieces), spans


def _tried(render: Callable[[], T]) -> T:
    try:
        return render()
    except RunawayError as error:
        raise DataError(f"data.chat_template: {error}") from None
    except RecursionError:
        raise UnreadableError("the chat template calls itself without end") from None
    except Exception as error:  # whatever an expression over arbitrary values may raise
        raise UnreadableError(f"the chat template refuses it ({reason(error)})") from None


def with_template(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> Any:
    """A tokenizer that has the template of `data.chat_template`; itself if none is given, else a copy.

    Raises:
        DataError: as `template_text` does, or it is not valid Jinja: it is saved with the model, also where
            no conversation was rendered.
    """
    if template is None:
        return tokenizer
    # The caller's tokenizer stays as it is; the copy is saved beside the model with the template it learned.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template_text(template)
    _compiled(tokenizer.chat_template)
    return tokenizer


def template_text(template: str | None, base: Path | None = None) -> str | None:
    """The Jinja text that `data.chat_template` stands for: itself, or the contents of the file it names.

    Raises:
        DataError: neither a template nor a file that can be read.
    """
    if template is None or "{{" in template or "{%" in template:
        return template
    path = (base or Path()) / at_home(template)
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a regular file")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.chat_template is neither a Jinja template nor a readable file: {template[:200]} "
            f"({reason(error)})"
        ) from None
