"""Records that make no question, or one that could not be scored truly, are refused in one sentence."""

import re
from typing import Any

import pytest

from gradwise import DataError
from gradwise.evaluation import Choice, Generate
from gradwise.evaluation.questions import questions
from tests.data.templates import UNMARKED
from tests.evaluation.conftest import Write


def choice(path: str, **changes: Any) -> Choice:
    settings: dict[str, Any] = {"name": "t", "path": path, "prompt": "q", "choices": "c", "answer": "a"}
    return Choice(**(settings | changes))


def generate(path: str, **changes: Any) -> Generate:
    settings: dict[str, Any] = {"name": "t", "path": path, "prompt": "q", "answer": "a"}
    return Generate(**(settings | changes))


def refused(task: Choice | Generate, tokenizer: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        questions(task, tokenizer)


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        ({"q": None, "a": "x"}, {}, "line 1: prompt: 'q' is null"),
        ({"q": "?", "a": None}, {}, "line 1: answer: 'a' is null"),
        ({"q": "?", "a": None}, {"answer": "{{a}}"}, "line 1: answer: '{{a}}' is null"),
        ({"q": None, "a": "x"}, {"prompt": "{{q}}"}, "line 1: prompt: a value is null"),
        ({"q": None, "a": "x"}, {"prompt": "Q: {{q}}"}, "line 1: prompt: a value is null"),
        ({"q": "?", "a": ["x", None]}, {}, "line 1: the answer is null"),
    ],
)
def test_a_null_is_not_the_word_none(
    records: Write, tokenizer: Any, record: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    refused(generate(records(record), **changes), tokenizer, message)


def test_a_template_may_say_what_stands_for_a_null(records: Write, tokenizer: Any) -> None:
    path = records({"q": None, "a": "x"})
    (question,) = questions(generate(path, prompt="Q: {{q or 'nothing'}}{{' ' if q is none}}"), tokenizer)
    assert question.prompt == "Q: nothing "


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        ({"q": "?", "c": ["x", None], "a": 0}, {}, "a choice is null"),
        ({"q": "?", "c": "x", "d": None, "a": 0}, {"choices": ["c", "d"]}, "choices: 'd' is null"),
        ({"q": "?", "c": ["x", "y"], "a": None}, {}, "answer: 'a' is null"),
    ],
)
def test_a_null_is_no_choice(
    records: Write, tokenizer: Any, record: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    refused(choice(records(record), **changes), tokenizer, message)


def test_a_choice_is_a_column_of_all_records_or_of_none(records: Write, tokenizer: Any) -> None:
    full, lacking = {"q": "?", "c": "x", "d": "y", "a": 0}, {"q": "?", "c": "x", "a": 0}
    for rows in ((full, lacking), (lacking, full)):
        task = choice(records(*rows), choices=["c", "d"])
        refused(task, tokenizer, "line 2: choices: 'd' is a column of some records and not of others")
    task = choice(records(lacking, lacking), choices=["c", "neither"])
    assert [question.choices for question in questions(task, tokenizer)] == [("x", "neither")] * 2


def test_an_answer_that_ignore_empties_is_refused(records: Write, tokenizer: Any) -> None:
    """Every generated text that is emptied as well counted as right."""
    path = records({"q": "?", "a": ["7", "$"]})
    refused(generate(path, ignore="[,$]"), tokenizer, "line 1: `ignore` leaves nothing of the answer '$'")
    assert questions(generate(path, ignore="[,]"), tokenizer)[0].answers == ("7", "$")


@pytest.mark.parametrize("answer", ["2", 2])
def test_an_answer_that_is_text_of_one_choice_and_number_of_another(
    records: Write, tokenizer: Any, answer: Any
) -> None:
    path = records({"q": "?", "c": ["1", "2", "3", "4"], "a": answer})
    advice = "{{'ABCD'[choices.index(answer)]}}"
    refused(
        choice(path),
        tokenizer,
        f"the answer '2' is the text of one choice and the number from 0 of another; "
        f"give the right one's letter, as in {advice}",
    )
    by_text = choice(path, answer="{{'ABCD'[c.index(a|string)]}}")
    by_number = choice(path, answer="{{'ABCD'[a|int]}}")
    assert [questions(task, tokenizer)[0].right for task in (by_text, by_number)] == [1, 2]


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["0", "1", "2"], "1", 1),
        (["3", "4", "5"], "4", 1),
        (["3", "4", "5"], 2, 2),
        (["3", "4", "5"], "2", 2),
        (["2", "3", "4"], "b", 1),
    ],
)
def test_one_reading_is_enough(
    records: Write, tokenizer: Any, choices: list[str], answer: Any, right: int
) -> None:
    task = choice(records({"q": "?", "c": choices, "a": answer}))
    assert questions(task, tokenizer)[0].right == right


def test_digits_without_end_are_no_number(records: Write, tokenizer: Any) -> None:
    task = choice(records({"q": "?", "c": ["x", "y"], "a": "9" * 5000}))
    refused(task, tokenizer, "is none of the 2 choices")


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"q": "\ud800"}, "the prompt"), ({"c": ["x", "\ud800"]}, "a choice"), ({"a": "\ud800"}, "the answer")],
)
def test_half_a_character_is_refused(
    records: Write, tokenizer: Any, changes: dict[str, Any], name: str
) -> None:
    path = records({"q": "?", "c": ["x", "y"], "a": "x"} | changes)
    message = f"line 1: {name} holds half a surrogate pair, which is no character"
    refused(choice(path), tokenizer, message)
    if "c" not in changes:
        refused(generate(path), tokenizer, message)


def test_marks_of_the_chat_template_are_refused(
    records: Write, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", UNMARKED)
    path = records({"q": "a\ufdd1b", "a": "x"})
    refused(generate(path, chat=True), tokenizer, "line 1: its text holds U+FDD0 or U+FDD1")
    assert questions(generate(path), tokenizer)[0].prompt == "a\ufdd1b"
