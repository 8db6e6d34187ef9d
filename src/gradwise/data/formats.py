"""What a record says: a text, a prompt with its completion, or a conversation.

The plain layouts:

    prompt_completion   {prompt}{completion}                                    nothing is put between them
    question_answer     Question: {question}\\nAnswer: {answer}
    instruction         ### Task\\n{instruction}\\n\\n### Input\\n{input}\\n\\n### Response\\n{output}
                        (without the input's part where it is blank)
"""

import json
from dataclasses import dataclass
from typing import Any

from gradwise.data.records import Record, UnreadableError, few
from gradwise.data.settings import FormatName, Role, Source
from gradwise.errors import DataError

# In the order of detection; the first role lists hold what must be there, the second what may be.
FORMATS: dict[FormatName, tuple[tuple[Role, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("tools",)),
    "prompt_completion": (("prompt", "completion"), ("tools",)),
    "instruction": (("instruction", "output"), ("input",)),
    "question_answer": (("question", "answer"), ()),
    "text": (("text",), ()),
}
_PAIRS: tuple[FormatName, ...] = ("prompt_completion", "instruction", "question_answer")
_SPEAKERS = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Text:
    """Every token of it is learned."""

    text: str

    @property
    def blank(self) -> bool:
        return not self.text.strip()


@dataclass(frozen=True)
class Pair:
    """`ask` is the prompt without a layout, for the user's turn of a chat template; `prompt` is laid out."""

    prompt: str
    completion: str
    ask: str

    @property
    def blank(self) -> bool:
        return not self.completion.strip()


@dataclass(frozen=True)
class Chat:
    """A conversation; the assistant's turns from message number `first` on are learned."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    first: int = 0

    @property
    def blank(self) -> bool:
        """There are turns to learn, and not one of them says anything."""
        turns = [m for m in self.messages[self.first :] if m["role"] == "assistant"]
        return bool(turns) and not any(set(m) - {"role", "content"} or _said(m) for m in turns)


Sample = Text | Pair | Chat


@dataclass(frozen=True)
class Format:
    """How the records of one source are understood."""

    name: FormatName
    source: Source

    def sample(self, values: dict[str, Any]) -> Sample:
        """The sample in a record's raw `values`.

        Raises:
            UnreadableError: a field is missing, or is not what the format needs.
        """
        named = rename(values, self.source)
        needed, _ = FORMATS[self.name]
        for role in needed:
            if role not in named:
                raise UnreadableError(
                    f"no field `{self.source.fields.get(role, role)}`, which the format {self.name} needs; "
                    f"found: {few(list(values))} (the source's `fields` can map other names)"
                )
        if self.name == "messages":
            return Chat(_messages(named["messages"], "messages"), _tools(named.get("tools")))
        if self.name == "prompt_completion" and isinstance(named["prompt"], list):
            return _conversational(named)
        texts = {role: _text(named.get(role), role) for role in (*needed, "input")}
        return _written(self.name, texts)

    def domain(self, values: dict[str, Any], default: str) -> str:
        """The record's domain; `default` where neither the source nor the record names one."""
        if self.source.domain is not None:
            return self.source.domain
        found = rename(values, self.source).get("domain")
        return default if found is None or not str(found).strip() else str(found)

    def weight(self, values: dict[str, Any]) -> float:
        """The source's weight, times the record's where `fields` names a column for it."""
        column = self.source.fields.get("weight")
        if column is None:
            return self.source.weight
        try:
            weight = float(values[column])
        except (KeyError, TypeError, ValueError):
            raise UnreadableError(
                f"no number in the field `{column}`, which `fields` names as the weight"
            ) from None
        if not 0 < weight < float("inf"):
            raise UnreadableError(f"the weight is {weight}; a finite number above 0 is needed")
        return self.source.weight * weight


def detect(source: Source, columns: list[str]) -> Format:
    """The format of a source whose records have these `columns`, in the file's own names.

    Detection takes `messages` first, then the one pair of prompt and completion that is complete, then
    `text`.

    Raises:
        DataError: no format or several fit, or `fields` names a column or a role of no use here.
    """
    for role, column in source.fields.items():
        if column not in columns:
            raise DataError(
                f"{source.path}: `fields` takes {role} from {column!r}; the columns are {few(columns)}"
            )
    name = source.format if source.format != "auto" else _guess(source, columns)
    needed, optional = FORMATS[name]
    idle = [role for role in source.fields if role not in (*needed, *optional, "domain", "weight")]
    if idle:
        raise DataError(
            f"{source.path}: `fields` maps {', '.join(idle)}, which the format {name} does not read"
        )
    if source.domain is not None and "domain" in source.fields:
        raise DataError(f"{source.path}: `domain` and `fields.domain` are both given; keep one")
    return Format(name, source)


def _guess(source: Source, columns: list[str]) -> FormatName:
    named = rename(dict.fromkeys(columns), source)
    fitting: list[FormatName] = [
        name for name, (needed, _) in FORMATS.items() if all(role in named for role in needed)
    ]
    pairs = [name for name in fitting if name in _PAIRS]
    if fitting and (fitting[0] == "messages" or len(pairs) < 2):
        return fitting[0]
    problem = f"fits {' and '.join(pairs)}; say which with `format`" if pairs else "fits no format"
    known = "; ".join(f"{name}: {' + '.join(needed)}" for name, (needed, _) in FORMATS.items())
    raise DataError(
        f"{source.path} {problem}. Its columns are {few(columns)}; the formats are {known} "
        "(the source's `fields` can map other names)"
    )


def rename(values: dict[str, Any], source: Source) -> dict[str, Any]:
    """Values by role: mapped columns under their role, the others under their own name."""
    mapped = set(source.fields.values())
    rest = {name: value for name, value in values.items() if name not in mapped}
    return rest | {role: values[column] for role, column in source.fields.items() if column in values}


def columns_of(records: list[Record]) -> list[str]:
    """Every column that one of `records` has, in the order met."""
    return list(dict.fromkeys(name for record in records for name in record.values))


def _written(name: FormatName, texts: dict[str, str]) -> Sample:
    if name == "text":
        return Text(texts["text"])
    if name == "prompt_completion":
        return Pair(texts["prompt"], texts["completion"], ask=texts["prompt"])
    if name == "question_answer":
        return Pair(f"Question: {texts['question']}\nAnswer: ", texts["answer"], ask=texts["question"])
    task, given = texts["instruction"], texts["input"]
    parts = [f"### Task\n{task}"] + ([f"### Input\n{given}"] if given.strip() else [])
    ask = f"{task}\n\n{given}" if given.strip() else task
    return Pair("\n\n".join([*parts, "### Response\n"]), texts["output"], ask)


def _text(value: Any, role: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UnreadableError(f"the field for {role} holds a {type(value).__name__}; text is needed")


def _conversational(named: dict[str, Any]) -> Chat:
    prompt = _messages(named["prompt"], "prompt")
    return Chat(
        prompt + _messages(named["completion"], "completion"), _tools(named.get("tools")), len(prompt)
    )


def _parsed(value: Any, role: str) -> Any:
    """Tables hold lists as JSON text at times."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise UnreadableError(f"the field for {role} holds text that is not JSON; a list is needed") from None


def _tools(value: Any) -> list[Any] | None:
    tools = _parsed(value or None, "tools")
    if tools is not None and not isinstance(tools, list):
        raise UnreadableError(f"the field for tools holds a {type(tools).__name__}; a list is needed")
    return tools


def _messages(value: Any, role: str) -> list[dict[str, Any]]:
    found = _parsed(value, role)
    if not isinstance(found, list) or not found:
        raise UnreadableError(f"the field for {role} must hold a list of messages with `role` and `content`")
    return [_message(message, number) for number, message in enumerate(found, start=1)]


def _message(value: Any, number: int) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        found = few(list(value)) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise UnreadableError(
            f"message {number} has no `role`; an object with `role` and `content` is needed, found: {found}"
        )
    message = {key: item for key, item in value.items() if item is not None}
    if message["role"] not in _SPEAKERS:
        raise UnreadableError(
            f"message {number} has the role {message['role'][:40]!r}; known are {', '.join(_SPEAKERS)}"
        )
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(_part(part, number) for part in content)
    elif not isinstance(content, str) and not (content is None and "tool_calls" in message):
        raise UnreadableError(f"message {number} has no text in `content`")
    return message


def _part(part: Any, number: int) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise UnreadableError(f"message {number} has content other than text")


def _said(message: dict[str, Any]) -> bool:
    return bool(message.get("content", "").strip())
