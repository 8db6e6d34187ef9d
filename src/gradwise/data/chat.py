"""Conversations through a chat template: the text, and which of its characters the model is to learn.

A template that marks the assistant's words with `{% generation %}` is believed. For any other, a turn's words
are what the rendering gains between the prompt that asks for the turn and the conversation that holds it;
that is only sound where each rendering begins with the one before, so this is checked.
"""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from gradwise.data.files import at_home
from gradwise.data.formats import Chat
from gradwise.data.records import UnreadableError
from gradwise.errors import DataError

Span = tuple[int, int]
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """Renders with `jinja` in place of the tokenizer's own template where it is given."""

    tokenizer: PreTrainedTokenizerBase
    jinja: str | None = None

    def spell(self, chat: Chat, locate: bool = True) -> tuple[str, list[Span]]:
        """The text of a conversation and the character spans to learn.

        Without `locate` the spans are left empty, and any template will do.

        Raises:
            UnreadableError: the template refuses this conversation.
            DataError: no template, or one that does not show where the assistant speaks.
        """
        template = self._template(chat.tools)
        if not locate:
            return self._render(chat, len(chat.messages)), []
        if _MARKS.search(template):
            return self._marked(chat, template)
        return self._by_prefix(chat)

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

    def _marked(self, chat: Chat, template: str) -> tuple[str, list[Span]]:
        # Not `return_assistant_tokens_mask`: where a byte-level tokenizer trims white space from offsets, it
        # looks up the last character of a turn in vain and then marks everything to the end, the user's turns
        # included.
        given: dict[str, Any] = {"chat_template": template, "return_assistant_tokens_mask": True}
        given |= {"conversations": [chat.messages], "tools": chat.tools, **self.tokenizer.special_tokens_map}
        texts, spans = _tried(lambda: render_jinja_template(**given))
        past = len(self._prefix(chat, chat.first, texts[0])) if chat.first else 0
        return texts[0], [(max(start, past), end) for start, end in spans[0]]

    def _by_prefix(self, chat: Chat) -> tuple[str, list[Span]]:
        text = self._render(chat, len(chat.messages))
        spans = []
        for number, message in enumerate(chat.messages):
            if message["role"] == "assistant" and number >= chat.first:
                asked = self._prefix(chat, number, text, asking=True)
                spans.append((len(asked), len(self._prefix(chat, number + 1, text))))
        return text, spans

    def _prefix(self, chat: Chat, count: int, text: str, asking: bool = False) -> str:
        """The first `count` messages rendered; `text`, the whole conversation, must begin with them."""
        if count == 0:
            raise UnreadableError(
                "the conversation starts with the assistant, whose turn can only be found in a chat template "
                "with {% generation %} marks"
            )
        if count == len(chat.messages):
            return text
        prefix = self._render(chat, count, asking)
        if not text.startswith(prefix):
            raise DataError(
                "this chat template writes earlier turns differently once later ones follow, so the "
                "assistant's words cannot be located; give one with {% generation %} marks as "
                "data.chat_template, or set data.loss_on: all"
            )
        return prefix

    def _render(self, chat: Chat, count: int, asking: bool = False) -> str:
        return _tried(
            lambda: self.tokenizer.apply_chat_template(
                chat.messages[:count],
                tools=chat.tools,
                chat_template=self.jinja,
                add_generation_prompt=asking,
                tokenize=False,
            )
        )


def _tried(render: Any) -> Any:
    try:
        return render()
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"the chat template is not valid Jinja, line {error.lineno}: {error.message}"
        ) from None
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UnreadableError(f"the chat template refuses it ({error})") from None


def with_template(tokenizer: Any, given: str | None) -> Any:
    """A tokenizer that has the template of `data.chat_template`; itself if none is given, else a copy.

    Raises:
        DataError: as `template_text` does.
    """
    if given is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template_text(given)
    return tokenizer


def template_text(given: str | None, base: Path | None = None) -> str | None:
    """The Jinja text that `data.chat_template` stands for: itself, or what the file it names holds.

    Raises:
        DataError: neither a template nor a file that can be read.
    """
    if given is None or "{{" in given or "{%" in given:
        return given
    path = (base or Path()) / at_home(given)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.chat_template is neither a Jinja template nor a readable file: {given} ({error})"
        ) from None
