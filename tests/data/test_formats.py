"""Formats: detected from columns, with the user's own names; and what a record of each kind says."""

import pytest

from gradwise.data import Source
from gradwise.data.formats import Chat, Format, Pair, Text, detect
from gradwise.data.records import UnreadableError
from gradwise.errors import DataError

ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def sample(values: dict, **given):
    return detect(Source("f.jsonl", **given), list(values)).sample(values)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["text", "id"], "text"),
        (["prompt", "completion", "text"], "prompt_completion"),
        (["instruction", "input", "output", "answer"], "instruction"),
        (["instruction", "output"], "instruction"),
        (["question", "answer", "text"], "question_answer"),
        (["messages", "prompt", "completion", "question", "answer"], "messages"),
        (["prompt", "text"], "text"),
    ],
)
def test_the_format_is_detected_from_the_columns(columns, name):
    assert detect(Source("f.jsonl"), columns).name == name


def test_real_columns(shared):
    from gradwise.data.read import read

    for path, name in {
        "gsm8k/test.jsonl": "question_answer",
        "commonsense/test/piqa.json": "instruction",
    }.items():
        (part,) = read(Source(str(shared / path)))
        assert detect(Source(path), list(next(part.records()).values)).name == name


@pytest.mark.parametrize("columns", [["query", "reply"], ["prompt"], []])
def test_no_fitting_format_names_the_columns_and_the_formats(columns):
    with pytest.raises(DataError, match="fits no format") as error:
        detect(Source("f.jsonl"), columns)
    assert ", ".join(columns) in str(error.value)
    assert "question_answer: question + answer" in str(error.value)


def test_two_complete_pairs_are_not_guessed_between():
    columns = ["prompt", "completion", "question", "answer"]
    with pytest.raises(DataError, match="fits prompt_completion and question_answer; say which"):
        detect(Source("f.jsonl"), columns)
    assert detect(Source("f.jsonl", format="question_answer"), columns).name == "question_answer"


def test_mapped_fields_come_first():
    values = {"query": "q", "reply": "a", "prompt": "not this one"}
    assert sample(values, fields={"prompt": "query", "completion": "reply"}) == Pair("q", "a", "q")
    moved = {"question": "q", "answer": "a"}
    assert sample(moved, fields={"prompt": "question", "completion": "answer"}) == Pair("q", "a", "q")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fields": {"prompt": "qurey"}}, "takes prompt from 'qurey'; the columns are query, text"),
        ({"fields": {"prompt": "query"}}, "maps prompt, which the format text does not read"),
        ({"fields": {"domain": "query"}, "domain": "x"}, "keep one"),
    ],
)
def test_a_mapping_of_no_use_is_refused(given, said):
    with pytest.raises(DataError, match=said):
        detect(Source("f.jsonl", **given), ["query", "text"])


def test_layouts_end_where_the_completion_begins():
    assert sample({"text": " a "}) == Text(" a ")
    assert sample({"prompt": "2+2=", "completion": 4}) == Pair("2+2=", "4", "2+2=")
    assert sample({"question": "why?", "answer": "so"}) == Pair("Question: why?\nAnswer: ", "so", "why?")
    blank = sample({"instruction": "Sum up.", "input": " ", "output": "ok"})
    assert blank == Pair("### Task\nSum up.\n\n### Response\n", "ok", "Sum up.")
    full = sample({"instruction": "Sum up.", "input": "a b", "output": "ok"})
    assert full == Pair("### Task\nSum up.\n\n### Input\na b\n\n### Response\n", "ok", "Sum up.\n\na b")


@pytest.mark.parametrize("blank", [None, "", " \n"])
def test_blank_completions_are_blank_and_blank_prompts_are_not(blank):
    assert sample({"prompt": "q", "completion": blank}).blank
    assert sample({"text": blank}).blank
    assert sample({"messages": [ASK, {"role": "assistant", "content": blank or ""}]}).blank
    assert not sample({"prompt": blank, "completion": "a"}).blank


def test_a_call_of_a_tool_is_not_blank():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert not sample({"messages": [ASK, call]}).blank


def test_conversations_keep_messages_tools_and_where_learning_starts():
    assert sample({"messages": [ASK, SAY], "tools": [{"name": "f"}]}) == Chat([ASK, SAY], [{"name": "f"}])
    assert sample({"prompt": [ASK, SAY, ASK], "completion": [SAY]}) == Chat([ASK, SAY, ASK, SAY], first=3)
    assert sample({"messages": '[{"role": "user", "content": "hi"}]'}) == Chat([ASK])
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert sample({"messages": [{"role": "user", "content": parts, "name": None}]}) == Chat([ASK])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"answer": "a"}, "no field `question`, which the format question_answer needs; found: answer"),
        ({"question": ["q"], "answer": "a"}, "the field for question holds a list"),
        ({"question": True, "answer": "a"}, "the field for question holds a bool"),
    ],
)
def test_unreadable_fields_are_named(values, said):
    with pytest.raises(UnreadableError, match=said):
        Format("question_answer", Source("f")).sample(values)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "must hold a list of messages"),
        ("hi", "not JSON"),
        ([ASK, "hi"], "message 2 has no `role`.* found: a str"),
        ([{"from": "human", "value": "hi"}], "message 1 has no `role`.* found: from, value"),
        ([{"role": "gpt", "content": "hi"}], "message 1 has the role 'gpt'; known are system"),
        ([{"role": "user"}], "message 1 has no text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 has content other than text"),
    ],
)
def test_messages_of_unknown_structure_are_named(messages, said):
    with pytest.raises(UnreadableError, match=said):
        Format("messages", Source("f")).sample({"messages": messages})


def test_domain_is_the_sources_then_the_records_then_the_files():
    values = {"text": "a", "domain": "own", "kind": "mapped"}
    assert Format("text", Source("f", domain="given")).domain(values, "file") == "given"
    assert Format("text", Source("f", fields={"domain": "kind"})).domain(values, "file") == "mapped"
    assert Format("text", Source("f")).domain(values, "file") == "own"
    assert Format("text", Source("f")).domain({"text": "a", "domain": " "}, "file") == "file"


def test_weights_multiply_and_must_be_positive():
    form = Format("text", Source("f", weight=2.0, fields={"weight": "w"}))
    assert form.weight({"w": "1.5"}) == 3.0
    assert Format("text", Source("f", weight=2.0)).weight({"weight": 7}) == 2.0
    for bad in ("x", None, 0, -1, float("nan"), float("inf")):
        with pytest.raises(UnreadableError, match="weight"):
            form.weight({"w": bad})


def test_sharegpt_turns_are_messages():
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello", "weight": 0}]
    assert sample({"conversations": turns, "id": 7}) == Chat([ASK, SAY], unlearned=frozenset({1}))
    system = {"role": "system", "content": "Be kind."}
    found = sample({"conversations": turns, "system": "Be kind."})
    assert found == Chat([system, ASK, SAY], unlearned=frozenset({2}))
    assert sample({"conversations": [ASK, SAY]}) == Chat([ASK, SAY])
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'}
    calls = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}
    found = sample({"conversations": [turns[0], call, {"from": "observation", "value": "2"}]})
    assert found == Chat([ASK, calls, {"role": "tool", "content": "2"}])
    with pytest.raises(UnreadableError, match="turn 1 is from 'narrator'; known are human, user"):
        sample({"conversations": [{"from": "narrator", "value": "x"}]})
    with pytest.raises(UnreadableError, match="message 1 has no text"):
        sample({"conversations": [{"from": "human"}]})


def test_a_record_of_another_format_is_read_by_its_own():
    mixed = detect(Source("f.jsonl"), ["messages", "prompt", "completion", "text"])
    pair = {"messages": None, "prompt": "q", "completion": "a", "text": float("nan")}
    assert mixed.of(pair).sample(pair) == Pair("q", "a", "q")
    assert mixed.of({"text": "a"}).name == "text"
    assert mixed.of({"prompt": "q"}) == mixed
    for first in ({"question": "q", "answer": "a"}, {"prompt": "q", "completion": "a"}):
        form = detect(Source("f.jsonl"), ["prompt", "completion", "question", "answer"], first)
        assert form.name.startswith(next(iter(first)))
    only = detect(Source("f.jsonl", format="messages"), ["messages", "text"])
    assert only.of({"text": "a"}) == only
