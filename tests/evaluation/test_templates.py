"""Jinja over records: text is text, a lone expression is what it evaluates to, mistakes name the column."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise import DataError, RecipeError
from gradwise.evaluation.templates import Template

RECORD: dict[str, Any] = {
    "question": "2 + 2?",
    "choices": {"text": ["3", "4"], "label": ["A", "B"]},
    "answer": "So it is\n#### 12",
    "number": 3,
}


@pytest.mark.parametrize(
    ("source", "text", "value"),
    [
        ("question", "2 + 2?", "2 + 2?"),
        ("number", "3", 3),
        ("Q: {{question}}\nA:", "Q: 2 + 2?\nA:", "Q: 2 + 2?\nA:"),
        ("{{answer.split('####')[-1]|trim}}", "12", "12"),
        ("{{choices.text}}", "['3', '4']", ["3", "4"]),
        ("{{ choices['label'].index('B') }}", "1", 1),
        ("{{number}}{{number}}", "33", "33"),
        (" {{number}} ", " 3 ", 3),
        ("{{ {'a': {'b': number}}['a']['b'] }}", "3", 3),
        ("{% if number %}yes{% endif %}", "yes", "yes"),
        ("{{question|regex_replace('[0-9]', 'n')}}", "n + n?", "n + n?"),
        ("ends\n", "ends\n", "ends\n"),
        ("[1]", "[1]", "[1]"),
    ],
)
def test_text_and_value(source: str, text: str, value: Any):
    template = Template(source, "key")
    assert template.text(RECORD) == text
    assert template.value(RECORD) == value
    assert type(template.value(RECORD)) is type(value)


@given(st.text())
def test_a_column_is_never_evaluated(content: str):
    record = {"answer": content}
    assert Template("answer", "key").value(record) == content
    assert Template("{{answer}}", "key").value(record) == content
    assert Template("{{answer}}", "key").text(record) == content


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{{qestion}}",
            "key: 'qestion' is undefined; the record's columns: answer, choices, number, question",
        ),
        ("Q: {{qestion}}", "'qestion' is undefined"),
        ("{{choices.txt}}", "has no attribute 'txt'"),
        ("{{number / 0}}", "key: division by zero"),
        ("{{question.__class__.__mro__}}", "key: access to attribute '__class__' of 'str' object is unsafe"),
    ],
)
def test_what_a_record_lacks(source: str, message: str):
    for render in (Template(source, "key").text, Template(source, "key").value):
        with pytest.raises(DataError, match=re.escape(message)):
            render(RECORD)


def test_what_is_not_jinja():
    with pytest.raises(RecipeError, match=r"key: not valid Jinja, line 2: "):
        Template("{{a}}\n{{b", "key")
