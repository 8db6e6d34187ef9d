"""Small inputs on which data were once read wrongly, with their right values.

Each is read as it lies in the reference material, where that is at hand, and from a copy written here.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import processors

from gradwise.data import Allowed, Data, Pool, Source, load
from gradwise.errors import DataError

CASES = Path(__file__).parents[3] / "shared" / "cases"
TOLERANT = Allowed(cut=1, empty=1, duplicate=1, unreadable=1)

COLOURS = ["red", "blue", "green", "black", "white", "grey", "pink", "gold"]
EIGHT = [{"prompt": f"Say {colour}. ", "completion": f"It is {colour}."} for colour in COLOURS]


def asked(user: str, **assistant: Any) -> dict:
    turns = [{"role": "user", "content": user}, {"role": "assistant", **assistant}]
    return {"messages": turns}


def calling(arguments: Any) -> dict:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"content": None, "tool_calls": [call]}


def tool(**properties: str) -> dict:
    schema = {"type": "object", "properties": {name: {"type": kind} for name, kind in properties.items()}}
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


TWO_CALLS = [
    asked("weather?", **calling({"city": "Rome"})),
    asked("add", **calling({"a": 1, "b": 2})),
]
TWO_TOOLS = [
    asked("w", content="x") | {"tools": [tool(city="string")]},
    asked("w", content="y") | {"tools": [tool(n="integer")]},
]
EMPTY = [
    asked("hi", content=""),
    asked("hi", content="", name="bot"),
    asked("hi", content="  ", weight=1),
    {"messages": [*asked("hi", content="")["messages"], *asked("well?", content="yes")["messages"]]},
    asked("hi", content="", tool_calls=[]),
]
COPIES: dict[str, list[Any]] = {
    "nan.jsonl": [*EIGHT, {"prompt": "Say it. ", "completion": float("nan")}],
    "nan_in.jsonl": [
        {"instruction": "Name a colour", "input": float("nan"), "output": colour} for colour in COLOURS[:2]
    ],
    "int.jsonl": [*EIGHT, '{"prompt": "a", "completion": "b", "id": ' + "7" * 5000 + "}"],
    "idx.csv": [
        ",prompt,completion",
        *(f"{i},{row['prompt']},{row['completion']}" for i, row in enumerate(EIGHT)),
    ],
    "tool2.jsonl": TWO_CALLS,
    "tool.parquet": TWO_CALLS,
    "tools.parquet": TWO_TOOLS,
    "tool_d.jsonl": [TWO_CALLS[0], asked("hm?", content="ok")],
    "tool_s.jsonl": [asked("weather?", **calling('{"city": "Rome"}')), asked("hm?", content="ok")],
    "emp.jsonl": EMPTY,
    "r1.jsonl": [asked("a", content="<think>hm</think>b"), asked("a", content="c")],
    "noeos.jsonl": [asked("a", content="b"), asked("a", content="c")],
    "bos.jsonl": [{"text": "<s>Once upon a time"}, {"text": "Once more"}],
    "hub/dataset_infos.json": [{"default": {"features": {}}}],
    "hub/train.jsonl": EIGHT,
}


@pytest.fixture(params=["reference", "copy"])
def case(request: pytest.FixtureRequest, tmp_path: Path):
    """Gives the path of a case by its name."""

    def copy(name: str) -> str:
        for path in [path for path in COPIES if path == name or path.startswith(f"{name}/")]:
            written = tmp_path / path
            written.parent.mkdir(exist_ok=True)
            if written.suffix == ".parquet":
                datasets.Dataset.from_list(COPIES[path]).to_parquet(written)
            else:
                lines = [row if isinstance(row, str) else json.dumps(row) for row in COPIES[path]]
                written.write_text("\n".join(lines) + "\n")
        return str(tmp_path / name)

    def reference(name: str) -> str:
        if not CASES.is_dir():
            pytest.skip("the reference material is not here")
        copied = tmp_path / name
        (shutil.copytree if (CASES / name).is_dir() else shutil.copy)(CASES / name, copied)
        return str(copied)

    return copy if request.param == "copy" else reference


TURN = "<|{{ m.role }}|>{{ m.content or '' }}"
CALLS = (
    "{% for t in tools or [] %}{{ t.function | tojson }}{% endfor %}"
    "{% for m in messages %}"
    + TURN
    + "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def loaded(tokenizer, path: str, **settings: Any) -> Pool:
    data = Data(train=Source(path, domain="d"), allow=TOLERANT, **settings)
    return load(data, "train", tokenizer)


def texts(tokenizer, pool: Pool) -> list[str]:
    return [tokenizer.decode(ids) for ids in pool.dataset["input_ids"]]


def test_nan_is_a_missing_value(stories, case):
    report = loaded(stories, case("nan.jsonl")).report
    assert (report.kept, report.empty, report.examples["empty"]) == (8, 1, ("nan.jsonl:9",))
    inputs = loaded(stories, case("nan_in.jsonl"))
    assert len(inputs) == 2
    assert not any("nan" in text or "Input" in text for text in texts(stories, inputs))


def test_nulls_of_other_rows_keys_are_not_learned(stories, case):
    table, lines = (
        loaded(stories, case(name), chat_template=CALLS) for name in ("tool.parquet", "tool2.jsonl")
    )
    assert table.fingerprint == lines.fingerprint
    assert "null" not in "".join(texts(stories, table))
    tools = "".join(texts(stories, loaded(stories, case("tools.parquet"), chat_template=CALLS)))
    assert "null" not in tools
    assert '"city": {"type": "string"}' in tools


def test_arguments_as_json_text_are_decoded_first(stories, case):
    one, other = (loaded(stories, case(f"tool_{kind}.jsonl"), chat_template=CALLS) for kind in "sd")
    assert one.fingerprint == other.fingerprint


def test_a_number_that_cannot_be_read_is_an_unreadable_line(stories, case):
    path = case("int.jsonl")
    report = loaded(stories, path).report
    assert (report.kept, report.unreadable) == (8, 1)
    assert report.examples["unreadable"] == ("int.jsonl, line 9: a number of 5,000 digits cannot be read",)
    with pytest.raises(DataError, match=r"^int\.jsonl, line 9: a number of 5,000 digits"):
        load(Data(train=Source(path)), "train", stories)


def test_an_assistant_that_says_nothing_is_blank_whatever_its_keys(stories, case):
    path = case("emp.jsonl")
    with pytest.raises(DataError, match="5 records read, 1 kept"):
        loaded(stories, path, chat_template=CALLS)
    data = Data(validation=Source(path), allow=TOLERANT, chat_template=CALLS)
    pool = load(data, "validation", stories)
    assert pool.report.examples["empty"] == ("emp.jsonl:1", "emp.jsonl:2", "emp.jsonl:3")
    labels = [token for token in pool.dataset["labels"][0] if token >= 0]
    assert stories.decode(labels) == "yes</s>"


def test_the_index_of_pandas_is_left_out(stories, case):
    pool = loaded(stories, case("idx.csv"))
    assert (pool.report.kept, pool.report.notes) == (8, ())
    assert texts(stories, pool)[0] == "Say red. It is red.</s>"


THINKING = (
    "{% for m in messages %}"
    + TURN.replace("m.content", "m.content.split('</think>')[-1]")
    + "{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


def test_a_generation_prompt_that_opens_a_tag_is_named_as_the_cause(stories, case):
    with pytest.raises(DataError, match=r"generation prompt ends in '<think>', but it writes finished turns"):
        loaded(stories, case("r1.jsonl"), chat_template=THINKING)


def test_a_template_without_an_end_token_is_said_once(stories, case):
    plain = CALLS.replace("{{ eos_token }}", "")
    report = loaded(stories, case("noeos.jsonl"), chat_template=plain).report
    assert [note[:36] for note in report.notes] == ["2 samples end without an end token, "]
    assert str(report).count("will not learn to stop") == 1
    assert loaded(stories, case("noeos.jsonl"), chat_template=CALLS).report.notes == ()


def test_a_text_begins_once(stories, case, monkeypatch):
    begin = stories.bos_token_id
    adding = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    path = case("bos.jsonl")
    assert [ids.count(begin) for ids in loaded(stories, path).dataset["input_ids"]] == [1, 0]
    own = stories.backend_tokenizer.post_processor
    try:
        stories.backend_tokenizer.post_processor = adding
        pool = loaded(stories, path)
        template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
        settings: dict[str, Any] = {"chat_template": template, "template": "chat", "loss_on": "all"}
        pairs = Path(path).with_name("pairs.jsonl")
        pairs.write_text('{"prompt": "<s>Once", "completion": "up"}\n{"prompt": "a", "completion": "b"}\n')
        chats = loaded(stories, str(pairs), **settings)
    finally:
        stories.backend_tokenizer.post_processor = own
    for ids in [*pool.dataset["input_ids"], *chats.dataset["input_ids"]]:
        assert (ids[0], ids.count(begin)) == (begin, 1)


def test_metadata_of_the_hub_is_left_out(stories, case):
    pool = loaded(stories, case("hub"))
    assert (pool.report.read, pool.report.kept, pool.report.notes) == (8, 8, ())
