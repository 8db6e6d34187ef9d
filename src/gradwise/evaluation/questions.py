"""From a file of records to the questions a model is asked: rendered, checked, and ready before training."""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from gradwise.data.chat import ChatTemplate
from gradwise.data.read import read
from gradwise.data.records import Record
from gradwise.data.settings import Source
from gradwise.errors import DataError
from gradwise.evaluation.settings import Choice, FileTask, Generate
from gradwise.evaluation.templates import Template


@dataclass(frozen=True)
class Question:
    """One record of a task."""

    prompt: str
    """What the model is given, the chat template applied where it is asked for."""

    choices: tuple[str, ...] = ()
    """What to choose from."""

    right: int = 0
    """Position of the right choice."""

    answers: tuple[str, ...] = ()
    """The right answers to a question without choices."""


def questions(task: Generate | Choice, tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """Read and render all questions of a task.

    Raises:
        RecipeError: a template is not valid Jinja.
        DataError: there are no records, or one of them does not make a question; says which and why.
    """
    key = f"metrics.tasks: {task.name}"
    ask = _QuestionBuilder(task, tokenizer, key)
    task_questions = []
    try:
        for record in islice(_records(task), task.limit):
            try:
                task_questions.append(ask(record))
            except DataError as error:
                raise DataError(f"{record.origin.words}: {error}") from None
    except DataError as error:
        raise DataError(f"{key}: {str(error).rstrip('.')}.") from None
    if not task_questions:
        raise DataError(f"{key}: {task.path} holds no records.")
    return task_questions


def _records(task: FileTask) -> Iterator[Record]:
    for part in read(Source(path=task.path, split=task.split, config=task.config)):
        yield from part.records()


class _QuestionBuilder:
    """Makes a question out of a record."""

    def __init__(self, task: Generate | Choice, tokenizer: PreTrainedTokenizerBase, key: str) -> None:
        self._task, self._tokenizer = task, tokenizer
        self._prompt = Template(task.prompt, f"{key}.prompt")
        self._answer = Template(task.answer, f"{key}.answer")
        choices = task.choices if isinstance(task, Choice) else ()
        texts = [choices] if isinstance(choices, str) else choices
        self._choices = [Template(text, f"{key}.choices") for text in texts]
        self._columns: list[bool] | None = None
        """Which of several choices are columns, by the first record."""

    def __call__(self, record: Record) -> Question:
        if record.problem:
            raise DataError(record.problem)
        self._prompt.check_varies(record.values)
        prompt = self._with_chat_template(_checked(self._prompt.text(record.values), "the prompt"))
        if isinstance(self._task, Generate):
            self._answer.check_varies(record.values)
            return Question(prompt, answers=_answers(self._task, self._answer.value(record.values)))
        choices = self._choices_of(record.values)
        return Question(prompt, choices, _position(self._answer.value(record.values), choices))

    def _with_chat_template(self, prompt: str) -> str:
        if not prompt.strip():
            raise DataError("the prompt is empty")
        if not self._task.chat:
            return prompt
        return ChatTemplate(self._tokenizer).prompt([{"role": "user", "content": prompt}])

    def _choices_of(self, record: dict[str, Any]) -> tuple[str, ...]:
        if isinstance(self._task, Choice) and isinstance(self._task.choices, str):
            values = self._choices[0].value(record)
            if not isinstance(values, list | tuple):
                raise DataError(f"`choices` must give a list; found {type(values).__name__}")
        else:
            self._check_columns(record)
            values = [template.text(record) for template in self._choices]
        choices = tuple(_text(choice, "a choice") for choice in values)
        if len(choices) < 2 or not all(choices):
            raise DataError(f"a choice is between two texts at least; found {len(choices)}, or an empty one")
        return choices

    def _check_columns(self, record: dict[str, Any]) -> None:
        """Refuse a choice that names a column of some records only: in others it would be a text."""
        columns = [template.source in record for template in self._choices]
        self._columns = self._columns or columns
        for template, here, before in zip(self._choices, columns, self._columns, strict=True):
            if here != before:
                raise DataError(
                    f"choices: {template.source[:40]!r} is a column of some records and not of others; give "
                    "every record this column"
                )


def _text(value: object, name: str) -> str:
    if value is None:
        raise DataError(f"{name} is null")
    return _checked(str(value).strip(), name)


def _checked(text: str, name: str) -> str:
    """The text; raises DataError where no tokenizer could read it."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{name} holds half a surrogate pair, which is no character")
    return text


def bare(task: Generate, text: str) -> str:
    """What is compared of an answer: without what the task ignores, and white space around the rest."""
    return (re.sub(task.ignore, "", text) if task.ignore else text).strip()


def _answers(task: Generate, value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    answers = tuple(_text(answer, "the answer") for answer in values)
    if not answers or not all(answers):
        raise DataError("the answer is empty")
    for answer in answers:
        # Every generated text that `ignore` empties as well would count as right.
        if not bare(task, answer):
            raise DataError(f"`ignore` leaves nothing of the answer {answer[:40]!r}; correct one of them")
    return answers


def _position(value: object, choices: tuple[str, ...]) -> int:
    """Position of a choice that is given by its text, its number from 0, or its letter from A."""
    text = _text(value, "the answer")
    letters = string.ascii_uppercase[: len(choices)]
    is_number = text.isdecimal() and len(text) < 10 and int(text) < len(choices)
    if is_number and text in choices and choices.index(text) != int(text):
        raise DataError(
            f"the answer {text!r} is the text of one choice and the number from 0 of another; give the right "
            f"one's letter, as in {{{{{letters!r}[choices.index(answer)]}}}}"
        )
    if not isinstance(value, int) and text in choices:
        return choices.index(text)
    if is_number:
        return int(text)
    if len(text) == 1 and text.upper() in letters:
        return letters.index(text.upper())
    raise DataError(
        f"the answer {text[:40]!r} is none of the {len(choices)} choices, nor a number from 0 to "
        f"{len(choices) - 1}, nor a letter from A to {letters[-1:]}"
    )
