"""What a record says: a text, a prompt with its completion, or a conversation.

The plain layouts:

    prompt_completion   {prompt}{completion}                                    nothing is put between them
    question_answer     Question: {question}\\nAnswer: {answer}
    instruction         ### Task\\n{instruction}\\n\\n### Input\\n{input}\\n\\n### Response\\n{output}
                        (without the input's part where it is blank)

Conversations, the formats `messages` and `conversations` (ShareGPT's) and lists of messages as prompt and
completion, are in `gradwise.data.messages`. A null, and the NaN that tables have in its place, is an empty
text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradwise.data.messages import Chat, continued, conversation, from_sharegpt
from gradwise.data.records import Record, UnreadableError, few
from gradwise.data.settings import FormatName, Role, Source
from gradwise.errors import DataError

# In the order of detection; the first role lists hold what must be there, the second what may be.
FORMATS: dict[FormatName, tuple[tuple[Role, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("tools",)),
    "conversations": (("conversations",), ("system", "tools")),
    "prompt_completion": (("prompt", "completion"), ("tools",)),
    "instruction": (("instruction", "output"), ("input",)),
    "question_answer": (("question", "answer"), ()),
    "text": (("text",), ()),
}
CHATS: frozenset[FormatName] = frozenset({"messages", "conversations"})
_PAIRS: tuple[FormatName, ...] = ("prompt_completion", "instruction", "question_answer")


@dataclass(frozen=True)
class Text:
    """A text whose tokens are all learned."""

    text: str

    @property
    def blank(self) -> bool:
        return not self.text.strip()


@dataclass(frozen=True)
class Pair:
    """A laid-out prompt and its completion; `ask` is the bare prompt, for a chat template's user turn."""

    prompt: str
    completion: str
    ask: str

    @property
    def blank(self) -> bool:
        return not self.completion.strip()


Sample = Text | Pair | Chat


@dataclass(frozen=True)
class Format:
    """How the records of one source are understood."""

    name: FormatName
    source: Source

    def of(self, values: dict[str, Any]) -> "Format":
        """The format of a record: this one, or if it fills no column of this one, the one that it fits."""
        columns = [self.source.fields.get(role, role) for role in FORMATS[self.name][0]]
        # A file may mix formats; only a record that fills no column of the file's own format takes another.
        if self.source.format != "auto" or not all(_is_missing(values.get(column)) for column in columns):
            return self
        fitting = _fitting(self.source, _filled(values))
        return Format(fitting[0], self.source) if _is_clear(fitting) else self

    def unread(self, columns: list[str]) -> list[str]:
        """The columns that the format does not read."""
        needed, optional = FORMATS[self.name]
        fields: Mapping[str, str] = self.source.fields  # type: ignore[assignment]
        read = {fields.get(role, role) for role in (*needed, *optional)}
        read |= {fields.get("domain", "domain"), fields.get("weight")}
        return [name for name in columns if name not in read]

    def sample(self, values: dict[str, Any]) -> Sample:
        """The sample in a record's raw `values`. Raises UnreadableError for a missing or unsuitable field."""
        by_role = rename(values, self.source)
        needed, _ = FORMATS[self.name]
        for role in needed:
            if role not in by_role:
                raise UnreadableError(
                    f"no field `{self.source.fields.get(role, role)}`, which the format {self.name} needs; "
                    f"found: {few(list(values))} (the source's `fields` can map other names)"
                )
        if self.name == "messages":
            return conversation(by_role["messages"], by_role.get("tools"))
        if self.name == "conversations":
            turns = from_sharegpt(by_role["conversations"], by_role.get("system"))
            return conversation(turns, by_role.get("tools"))
        if self.name == "prompt_completion" and isinstance(by_role["prompt"], list):
            return continued(by_role["prompt"], by_role["completion"], by_role.get("tools"))
        texts = {role: _text(by_role.get(role), role) for role in (*needed, "input")}
        return _written(self.name, texts)

    def domain(self, values: dict[str, Any], default: str) -> str:
        """The record's domain; `default` where neither the source nor the record names one."""
        if self.source.domain is not None:
            return self.source.domain
        value = rename(values, self.source).get("domain")
        text = "" if _is_missing(value) else str(value).strip() and str(value)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UnreadableError("its domain holds half a surrogate pair, which is no character")
        return text or default

    def weight(self, values: dict[str, Any]) -> float:
        """The source's weight, times the record's where `fields` names a column for it."""
        column = self.source.fields.get("weight")
        if column is None:
            return self.source.weight
        value = values.get(column)
        try:
            weight = math.nan if isinstance(value, bool | bytes) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            weight = math.nan
        if _is_missing(weight):
            raise UnreadableError(f"no number in the field `{column}`, which `fields` names as the weight")
        # A weight of 0 is a sample that is never seen, which leaving the record out says better.
        if not 0 < self.source.weight * weight < math.inf:
            raise UnreadableError(f"the weight is {weight:g}; a finite number above 0 is needed")
        return self.source.weight * weight


def detect(source: Source, columns: list[str], first: dict[str, Any] | None = None) -> Format:
    """The format of a source whose records have these `columns`, in the file's own names.

    Detection takes conversations first, then the one pair of prompt and completion that is complete, then
    `text`. Where several pairs are complete, as in a file that mixes formats, the `first` record decides.
    """
    for role, column in source.fields.items():
        if column not in columns:
            raise DataError(
                f"{source.path}: `fields` takes {role} from {column!r}; the columns are {few(columns)}"
            )
    name = source.format if source.format != "auto" else _guess(source, columns, _filled(first or {}))
    needed, optional = FORMATS[name]
    idle = [role for role in source.fields if role not in (*needed, *optional, "domain", "weight")]
    if idle:
        raise DataError(
            f"{source.path}: `fields` maps {', '.join(idle)}, which the format {name} does not read"
        )
    if source.domain is not None and "domain" in source.fields:
        raise DataError(f"{source.path}: `domain` and `fields.domain` are both given; keep one")
    return Format(name, source)


def _fitting(source: Source, columns: list[str]) -> list[FormatName]:
    by_role = rename(dict.fromkeys(columns), source)
    return [name for name, (needed, _) in FORMATS.items() if all(role in by_role for role in needed)]


def _is_clear(fitting: list[FormatName]) -> bool:
    pairs = sum(name in _PAIRS for name in fitting)
    return bool(fitting) and (fitting[0] not in (*_PAIRS, "text") or pairs < 2)


def _filled(values: dict[str, Any]) -> list[str]:
    return [name for name, value in values.items() if not _is_missing(value)]


def _guess(source: Source, columns: list[str], first: list[str]) -> FormatName:
    fitting = _fitting(source, columns)
    # By all columns, and where several pairs are complete by those that the first record fills.
    for matches in (fitting, _fitting(source, first)):
        if _is_clear(matches):
            return matches[0]
    pairs = [name for name in fitting if name in _PAIRS]
    problem = f"fits {' and '.join(pairs)}; say which with `format`" if pairs else "fits no format"
    descriptions = "; ".join(f"{name}: {' + '.join(needed)}" for name, (needed, _) in FORMATS.items())
    raise DataError(
        f"{source.path} {problem}. Its columns are {few(columns)}; the formats are {descriptions} "
        "(the source's `fields` can map other names, as in fields: {completion: response})"
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
    task, context = texts["instruction"], texts["input"]
    parts = [f"### Task\n{task}"] + ([f"### Input\n{context}"] if context.strip() else [])
    ask = f"{task}\n\n{context}" if context.strip() else task
    return Pair("\n\n".join([*parts, "### Response\n"]), texts["output"], ask)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _text(value: object, role: str) -> str:
    if _is_missing(value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UnreadableError(f"the field for {role} holds a {type(value).__name__}; text is needed")
