"""The data section of a recipe: sources of records, how they become tokens, which flaws are tolerated."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gradwise.errors import RecipeError
from gradwise.settings import Settings

FormatName = Literal[
    "text", "prompt_completion", "instruction", "question_answer", "messages", "conversations"
]
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
    "conversations",
    "system",
    "domain",
    "weight",
]
HALF = 0.5
"""Share of a set that chooses, if `data.target_share` is unset."""

Goal = Literal["target", "validation"]
"""The set that a selection aims at."""

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Source(Settings):
    """One place that records come from."""

    path: str
    """A .jsonl, .json, .parquet or .csv file, a folder of such files, a folder written by `save_to_disk`, or
    the name of a dataset on the hub. Relative paths start from the recipe's folder."""

    format: FormatName | Literal["auto"] = "auto"
    """Format of the records; `auto` infers it from the columns, record by record where a file mixes them."""

    split: str | None = None
    """Split of a hub dataset, of a saved `DatasetDict`, or of a folder whose files are named after splits
    (`train.jsonl`, `data/test-00000-of-00001.parquet`); `train` if unset."""

    config: str | None = None
    """Configuration of a hub dataset, or of a folder whose README.md lists configurations as the hub's do."""

    domain: str | None = None
    """Domain of all records of this source. If unset: the record's `domain` field, else the name of its file
    or dataset."""

    fields: dict[Role, str] = field(default_factory=dict)
    """Column for each role, where the names differ: `{prompt: query, completion: reply}`."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How often a sample of this source is drawn, relative to the others. It multiplies the record's own
    weight where `fields` maps a column to `weight`."""


@dataclass(frozen=True)
class Allowed(Settings):
    """Largest share of flawed records, from 0 to 1; with more, loading fails."""

    cut: Share = 0.25
    """Longer than `max_length`; they lose their end."""

    empty: Share = 0.01
    """Without a token to learn; they are left out."""

    duplicate: Share = 0.5
    """Same tokens and labels as an earlier record."""

    unreadable: Share = 0.0
    """Malformed, or without a field that the format needs; they are left out."""


def _path_is_source(value: object) -> Any:
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
    """Sources of the training records: one or a list; a bare string is a path."""

    validation: Sources = None
    """Sources of the validation records, which measure the run."""

    target: Sources = None
    """Sources of the target records: examples of what the model should become good at. A `domain` field names
    subtasks, each of which gets its share of a selection."""

    target_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the samples that choose, where `target` or `validation` alone is given and has to choose and
    to measure; the others measure. If unset, it is a half."""

    max_length: Annotated[int, Field(ge=2)] = 512
    """Maximum number of tokens of a sample; longer ones lose their end."""

    packing: bool | Literal["auto"] = False
    """Put several samples in one row. Each attends only to itself, and their order stays. The model is tested
    before the first step: where packed samples see each other, `true` refuses and `auto` trains unpacked."""

    template: Literal["plain", "chat"] = "plain"
    """How a prompt and a completion become text: `plain` joins them, `chat` writes a user's and an
    assistant's turn with the chat template. `messages` always use the chat template, `text` never does."""

    chat_template: str | None = None
    """A Jinja chat template, or the path of one, that replaces the tokenizer's. A date that a template asks
    for is always 26 July 2024, so that the samples are the same every day."""

    loss_on: Literal["completion", "all"] = "completion"
    """Tokens to learn: those of completions (in conversations: of the assistant's turns), or all."""

    duplicates: Literal["keep", "drop"] = "keep"
    """Whether a sample with the tokens and labels of an earlier one is kept."""

    allow: Allowed = Allowed()
    """Shares of flawed records to tolerate."""

    def check(self) -> None:
        sets = [name for name in ("target", "validation") if getattr(self, name) is not None]
        if self.target_share is not None and len(sets) != 1:
            raise RecipeError(
                f"data.target_share is {self.target_share:g}, and divides data.target or data.validation "
                f"where one of them is given alone; found {' and '.join(sets) or 'neither'}. Leave it out."
            )


def at_home(path: str) -> Path:
    """A path with a leading `~` or `~user` resolved; unchanged if there is no such user, since a file may
    have such a name.

    >>> at_home("~no one of this name/x")
    PosixPath('~no one of this name/x')
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
