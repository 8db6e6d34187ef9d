"""What a recipe says about data: where records come from, how they become tokens, what is put up with."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gradwise.settings import Settings

FormatName = Literal["text", "prompt_completion", "instruction", "question_answer", "messages"]
Role = Literal[
    "text",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "question",
    "answer",
    "messages",
    "domain",
    "weight",
]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Source(Settings):
    """One place records come from."""

    path: str
    """A .jsonl, .json, .parquet or .csv file, a folder of them, a folder written by `save_to_disk`, or the
    name of a dataset on the hub. Relative paths are taken from where the recipe stands."""

    format: Literal["auto", "text", "prompt_completion", "instruction", "question_answer", "messages"] = (
        "auto"
    )
    """What a record holds; `auto` tells it from the columns."""

    split: str | None = None
    """The split to read of a hub dataset or a saved `DatasetDict`; `train` when not given."""

    config: str | None = None
    """The configuration of a hub dataset."""

    domain: str | None = None
    """The domain of every record of this source. When not given: the record's own `domain` field, else the
    name of its file or dataset."""

    fields: dict[Role, str] = field(default_factory=dict)
    """Which column plays which role, where the names differ: `{prompt: query, completion: reply}`."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How often a sample of this source is drawn, relative to the others; multiplies the record's own weight
    where `fields` names a column for it."""


@dataclass(frozen=True)
class Allowed(Settings):
    """The share of records, from 0 to 1, above which loading is refused."""

    cut: Share = 0.25
    """Longer than `max_length`: they lose their end."""

    empty: Share = 0.01
    """Without a token to learn from: they are left out."""

    duplicate: Share = 0.5
    """The same tokens and labels as an earlier record."""

    unreadable: Share = 0.0
    """Malformed, or lacking a field: they are left out."""


def _path_is_source(value: Any) -> Any:
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, list):
        return [_path_is_source(item) for item in value]
    return value


Sources = Annotated[
    Source | list[Source] | None,
    BeforeValidator(_path_is_source, json_schema_input_type=str | Source | list[str | Source] | None),
]


@dataclass(frozen=True)
class Data(Settings):
    """The data of a run."""

    train: Sources = None
    """Where the training records come from: one source or several; a bare string is a path."""

    validation: Sources = None
    """Where the validation records come from."""

    max_length: Annotated[int, Field(ge=2)] = 512
    """Tokens a sequence may have; longer ones lose their end."""

    packing: bool = False
    """Put several samples in one row, each seeing only itself, without changing their order."""

    template: Literal["plain", "chat"] = "plain"
    """How prompts and completions become text: joined as they are, or as a user's and an assistant's turn of
    the chat template. `messages` always go through the chat template, `text` never does."""

    chat_template: str | None = None
    """A Jinja chat template, or the path of one, in place of the tokenizer's own."""

    loss_on: Literal["completion", "all"] = "completion"
    """Learn the completions (in conversations: the assistant's turns), or every token."""

    duplicates: Literal["keep", "drop"] = "keep"
    """What to do with a sample whose tokens and labels were seen before."""

    allow: Allowed = Allowed()
    """The shares of flawed records that are put up with."""
