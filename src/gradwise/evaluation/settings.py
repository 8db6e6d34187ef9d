"""What a recipe says about metrics: tasks on files, tasks that lm-eval knows, functions of the user's own."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from gradwise.errors import RecipeError
from gradwise.settings import Settings, from_text
from gradwise.text import shown

Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]
Count = Annotated[int, Field(ge=1)]
Texts = list[Annotated[str, Field(min_length=1)]]
Better = Literal["higher", "lower"]
"""Which values of a metric are better."""

HELD_OUT_LOSS = "held_out_loss"
"""Its name in scores, and among an evaluation's metrics after the prefix `eval_` or `eval_<set>_`."""


@dataclass(frozen=True, kw_only=True)
class FileTask(Settings):
    """What tasks on a file have in common.

    Templates are Jinja over the fields of a record: `Question: {{question}}`. A text that is the name of a
    column stands for what that column holds.
    """

    name: Name
    """Name of the score."""

    path: str
    """The records: a .jsonl, .json, .parquet or .csv file, a folder of them, a folder written by
    `save_to_disk`, or the name of a dataset on the hub. Relative paths start from the recipe's folder."""

    split: str | None = None
    """The split to read of a hub dataset or a saved `DatasetDict`; `train` if unset."""

    config: str | None = None
    """The configuration of a hub dataset."""

    prompt: str
    """Template of the prompt."""

    limit: Count | None = None
    """Largest number of records; the first ones are taken. If unset, all."""

    chat: bool = False
    """Put the prompt as a user's turn into the chat template, as instruction-tuned models expect."""


@dataclass(frozen=True, kw_only=True)
class Generate(FileTask):
    """The share of records whose generated answer is exactly right. Decoding is greedy."""

    kind: Literal["generate"] = "generate"
    """Exact match of generated answers."""

    answer: str
    """The right answer: a template; where it gives a list, any of its members is right."""

    extract: str | None = None
    """A regular expression for the answer within the generated text: its group, if it has one, else all that
    it matches. Without it the whole text is the answer. A text without a match is wrong."""

    take: Literal["first", "last"] = "last"
    """Which match of `extract` counts where there are several."""

    ignore: str | None = None
    """A regular expression for what is left out of both answers before they are compared: `[,$]`. White space
    around them never counts."""

    stop: Texts = field(default_factory=list)
    """Texts at which generation ends, beside the model's own end of text."""

    max_new_tokens: Count = 256
    """Largest number of tokens to generate."""

    def check(self) -> None:
        for key in ("extract", "ignore"):
            _check_pattern(f"metrics.tasks: {self.name}.{key}", getattr(self, key))


@dataclass(frozen=True, kw_only=True)
class Choice(FileTask):
    """The share of records where the right choice is the likeliest continuation of the prompt."""

    kind: Literal["choice"] = "choice"
    """Multiple choice by log-likelihood."""

    choices: Texts | str
    """The choices: a list of templates, or one expression that gives a list (`{{choices.text}}`) or column
    that holds one."""

    answer: str
    """The right choice: a template that gives its text, its number from 0, or its letter from A."""

    delimiter: str | None = None
    """Text between prompt and choice. If unset, a space, and nothing under `chat`, where the
    template ends the prompt."""

    normalise: bool = False
    """Divide each log-likelihood by the number of the choice's characters, so that long choices stand a
    chance; lm-eval calls the result acc_norm."""

    def check(self) -> None:
        if self.chat and self.delimiter is not None:
            raise RecipeError(
                f"metrics.tasks: {self.name}.delimiter means nothing with `chat: true`; leave it out."
            )
        if len(self.choices) < 2 and not isinstance(self.choices, str):
            raise RecipeError(
                f"metrics.tasks: {self.name}.choices: a choice is between two at least; "
                f"found {shown(self.choices)}."
            )


@dataclass(frozen=True, kw_only=True)
class LmEval(Settings):
    """A task or a group of tasks that lm-eval knows by name. Its data come from the hub unless cached."""

    kind: Literal["lm_eval"] = "lm_eval"
    """A task that lm-eval knows by name."""

    name: Name
    """lm-eval's name for it, which is also what the score is called."""

    folder: str | None = None
    """Folder of your own task files in lm-eval's format (YAML), used in place of lm-eval's."""

    metric: str | None = None
    """Which of the task's metrics is the score: `acc_norm`, or `exact_match,flexible-extract` with the name
    of a filter. If unset, the first that the task reports."""

    shots: Annotated[int, Field(ge=0)] | None = None
    """Number of worked examples in the prompt; if unset, the task's own number."""

    limit: Count | None = None
    """Largest number of records of each task; the first ones are taken. If unset, all."""

    chat: bool = False
    """Put prompts into the chat template."""


@dataclass(frozen=True, kw_only=True)
class Function(Settings):
    """A function of yours as a metric: `function(model, tokenizer, validation)` gives a number, or a mapping
    of names to numbers. `validation` is the data set of tokenised held-out samples, or None."""

    path: str
    """`path/to/file.py:function`, or `package.module:function` of something that is installed. Relative paths
    start from the recipe's folder."""

    name: Name | None = None
    """Name of the score. If unset, the function's name."""

    better: Better = "higher"
    """Which direction is better."""

    def check(self) -> None:
        place, _, function = self.path.rpartition(":")
        if not place or not function.isidentifier():
            raise RecipeError(
                f"metrics.functions: {shown(self.path)} names no function; write path/to/file.py:function or "
                "package.module:function."
            )

    @property
    def called(self) -> str:
        """The name of its score, or what stands before the slash in the names of its scores."""
        return self.name or self.path.rpartition(":")[2]


_Kind = Annotated[Generate | Choice | LmEval, Field(discriminator="kind")]
Task = Annotated[
    _Kind, BeforeValidator(from_text("name", kind="lm_eval"), json_schema_input_type=str | _Kind)
]
_Functions = Annotated[Function, BeforeValidator(from_text("path"), json_schema_input_type=str | Function)]


@dataclass(frozen=True, kw_only=True)
class Metrics(Settings):
    """What the final model is measured by, beside the held-out loss that comes with `data.validation`."""

    tasks: list[Task] = field(default_factory=list)
    """Tasks on local files (`kind: generate` or `kind: choice`), or known to lm-eval (a bare name, or `kind:
    lm_eval`)."""

    functions: list[_Functions] = field(default_factory=list)
    """Functions of yours; a bare string is a path."""

    batch_size: Count = 8
    """Prompts in one batch of a task."""

    def check(self) -> None:
        seen = {HELD_OUT_LOSS}
        for name in self.names:
            if name in seen:
                raise RecipeError(
                    f"metrics: two scores would be called {shown(name)}; give one of them another `name`."
                )
            seen.add(name)

    @property
    def names(self) -> list[str]:
        """What the scores will be called; functions may put more behind a slash."""
        return [task.name for task in self.tasks] + [function.called for function in self.functions]

    def __bool__(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.tasks or self.functions)


def _check_pattern(key: str, pattern: str | None) -> None:
    try:
        groups = re.compile(pattern or "").groups
    except (re.error, RecursionError, OverflowError) as error:
        raise RecipeError(f"{key}: not a regular expression ({error}); found {shown(pattern)}.") from None
    if groups > 1:
        raise RecipeError(f"{key}: one group at most, write (?:...) for the others; found {shown(pattern)}.")
