"""Loading: what is kept, what is counted, what is refused, and that contents alone decide the fingerprint."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from gradwise.data import Allowed, Collator, Data, Pool, Source, load, overlap
from gradwise.errors import DataError

from .templates import UNMARKED

LENIENT = Allowed(cut=1, empty=1, duplicate=1, unreadable=1)
FOUR = [{"prompt": f"{n} ", "completion": "yes"} for n in "abcd"]


def records(pool: Pool) -> list[dict]:
    return list(pool.dataset)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("count", [2500, pytest.param(7473, marks=pytest.mark.exhaustive)])
def test_gsm8k(stories, shared, head_of, count: int):
    """More records than `datasets` maps at a time."""
    path = head_of(shared / "gsm8k" / "train.jsonl", count)
    pool = load(Data(train=Source(str(path)), max_length=2048), "train", stories)
    report = pool.report
    assert (report.read, report.kept, report.cut, report.unreadable) == (count, count, 0, 0)
    assert pool.dataset.column_names == ["input_ids", "labels", "domain", "weight", "origin"]
    lines = (shared / "gsm8k" / "train.jsonl").read_text().splitlines()
    for number in (0, 999, 1000, 1001, count - 1):
        row = pool.dataset[number]
        record = json.loads(lines[number])
        assert row["origin"] == f"train.jsonl:{number + 1}"
        assert (row["domain"], row["weight"]) == ("train", 1.0)
        learned = stories.decode([label for label in row["labels"] if label >= 0])
        assert learned == record["answer"] + "</s>"
    assert pool.domains == {"train": count}


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_lengths_and_label_tokens_are_what_the_rows_hold(stories, shared, tmp_path: Path, count: int):
    for path in (shared / "commonsense" / "train").iterdir():
        (tmp_path / path.name).write_text(json.dumps(json.loads(path.read_text())[:count]))
    data = Data(validation=Source(str(tmp_path)), max_length=200, allow=LENIENT)
    pool = load(data, "validation", stories)
    rows = records(pool)
    assert len(pool) == len(rows) > count
    assert pool.lengths.tolist() == [len(row["input_ids"]) for row in rows]
    assert pool.label_tokens.tolist() == [sum(label >= 0 for label in row["labels"][1:]) for row in rows]
    assert pool.lengths.dtype == pool.label_tokens.dtype == "int32"
    assert pool.lengths.max() == 200
    assert pool.label_tokens.min() > 0
    assert (pool.lengths.sum(), pool.label_tokens.sum()) == (pool.report.tokens, pool.report.label_tokens)
    assert pool.report.empty == pool.report.read - pool.report.kept > 0
    assert set(pool.domains) == {"ARC-Challenge", "ARC-Easy", "boolq", "openbookqa"}
    assert sum(pool.domains.values()) == len(pool)


def test_counts_and_examples_by_hand(stories, jsonl):
    path = jsonl(
        [
            {"prompt": "a", "completion": "b"},
            {"prompt": "a", "completion": " "},
            "{broken",
            {"prompt": "a", "completion": "b"},
            {"prompt": "x" * 50, "completion": "b"},
            {"prompt": "a", "completion": "b" * 50},
            {"prompt": "a"},
        ]
    )
    data = Data(train=Source(path), max_length=20, allow=LENIENT)
    report = load(data, "train", stories).report
    assert (report.read, report.kept, report.cut, report.empty) == (7, 3, 2, 2)
    assert (report.duplicate, report.unreadable) == (1, 2)
    assert report.examples["cut"] == ("train.jsonl:5", "train.jsonl:6")
    assert report.examples["empty"] == ("train.jsonl:2", "train.jsonl:5")
    assert report.examples["duplicate"] == ("train.jsonl:4",)
    assert [said[:20] for said in report.examples["unreadable"]] == [
        "train.jsonl, line 3:",
        "train.jsonl, line 7:",
    ]
    assert json.loads(json.dumps(report.as_dict()))["examples"]["empty"] == ["train.jsonl:2", "train.jsonl:5"]
    assert "7 records read, 3 kept" in str(report)
    assert "2 unreadable, left out (first: train.jsonl, line 3" in str(report)
    dropped = load(replace(data, duplicates="drop"), "train", stories)
    assert [row["origin"] for row in records(dropped)] == ["train.jsonl:1", "train.jsonl:6"]


@pytest.mark.parametrize(
    ("kind", "flawed", "place"),
    [
        ("cut", {"prompt": "a", "completion": "b" * 100}, "train.jsonl:5; train.jsonl:6; train.jsonl:7$"),
        ("empty", {"prompt": "a", "completion": ""}, "train.jsonl:5; train.jsonl:6; train.jsonl:7$"),
        ("duplicate", FOUR[0], "train.jsonl:5; train.jsonl:6; train.jsonl:7$"),
        ("unreadable", {"prompt": "a"}, "train.jsonl, line 5: no field `completion`"),
    ],
)
def test_more_flaws_than_allowed_are_refused_with_the_key_to_change(stories, jsonl, kind, flawed, place):
    # A flaw of one kind is one of another, too, when repeated: only the kind at hand is held to its share.
    data = Data(train=Source(jsonl([*FOUR, *[flawed] * 4])), max_length=50)
    said = rf"4 of 8 records are .*data\.allow\.{kind} is 0\.49, .* 0\.5\. First: {place}"
    with pytest.raises(DataError, match=said):
        load(replace(data, allow=replace(LENIENT, **{kind: 0.49})), "train", stories)
    load(replace(data, allow=replace(LENIENT, **{kind: 0.5})), "train", stories)


def test_the_first_unreadable_record_stops_loading_at_once(stories, jsonl):
    path = jsonl([*FOUR, "{broken", *FOUR])
    with pytest.raises(DataError, match=r"^train\.jsonl, line 5: not JSON .* data\.allow\.unreadable"):
        load(Data(train=Source(path)), "train", stories)
    path = jsonl([{"question": "q", "answer": "a"}, {"question": "q", "reply": "a"}])
    with pytest.raises(DataError, match=r"line 2: no field `answer`.* found: question, reply .*`fields`"):
        load(Data(train=Source(path)), "train", stories)


def test_no_message_holds_the_records_text(stories, jsonl):
    path = jsonl([*FOUR, {"prompt": "SECRET", "completion": ["SECRET"]}, '{"prompt": "SECRET" "completion'])
    report = load(Data(train=Source(path), allow=LENIENT), "train", stories).report
    assert report.unreadable == 2
    assert "SECRET" not in str(report) + json.dumps(report.as_dict())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Data(), "data.train names no source"),
        (Data(train=[]), "data.train names no source"),
        (Data(train=Source("nowhere.jsonl")), "no file or folder nowhere.jsonl"),
        (Data(train=Source("blank.jsonl")), "holds no records"),
        (Data(train=Source("one.jsonl")), "training needs two samples"),
        (Data(train=Source("empty.jsonl"), allow=LENIENT), "nothing is left"),
        (
            Data(train=Source("two.jsonl"), chat_template="nowhere.jinja"),
            "neither a Jinja template nor a readable",
        ),
    ],
)
def test_what_leaves_nothing_to_train_on_is_refused(stories, jsonl, tmp_path, data, said):
    jsonl(["", ""], "blank.jsonl")
    jsonl(FOUR[:1], "one.jsonl")
    jsonl(FOUR[:2], "two.jsonl")
    jsonl([{"text": " "}] * 3, "empty.jsonl")
    with pytest.raises(DataError, match=said):
        load(data, "train", stories, base=tmp_path)


def test_one_record_is_enough_to_validate_on(stories, jsonl):
    assert len(load(Data(validation=Source(jsonl(FOUR[:1]))), "validation", stories)) == 1


def test_contents_alone_decide_the_fingerprint(stories, jsonl, tmp_path):
    def fingerprint(path: str, **given) -> str:
        return load(Data(train=Source(path, **{"domain": "d", **given})), "train", stories).fingerprint

    first = fingerprint(jsonl(FOUR))
    datasets.Dataset.from_list(FOUR).to_parquet(tmp_path / "other.parquet")
    assert fingerprint(str(tmp_path / "other.parquet")) == first
    assert fingerprint(jsonl(FOUR), weight=2.0) != first
    assert fingerprint(jsonl(FOUR), domain="e") != first
    assert fingerprint(jsonl(FOUR[::-1])) != first
    assert fingerprint(jsonl(FOUR[:3])) != first
    moved = [{"prompt": "", "completion": FOUR[0]["prompt"] + "yes"}, *FOUR[1:]]  # same tokens, other labels
    assert fingerprint(jsonl(moved)) != first


def test_a_file_that_changed_is_read_again(stories, jsonl):
    data = Data(train=Source(jsonl(FOUR)))
    before = load(data, "train", stories)
    jsonl([*FOUR, *FOUR])
    after = load(data, "train", stories)
    assert (len(before), len(after)) == (4, 8)
    assert len(records(before)) == 4


def test_sources_follow_one_another_with_their_domains_and_weights(stories, jsonl, tmp_path):
    jsonl([{"q": "1", "a": "2", "w": 3, "domain": "own"}, {"q": "3", "a": "4", "w": 0.5}], "first.jsonl")
    jsonl([{"text": "hello"}], "second.jsonl")
    first = Source("first.jsonl", fields={"question": "q", "answer": "a", "weight": "w"}, weight=2.0)
    pool = load(Data(train=[first, Source("second.jsonl", domain="given")]), "train", stories, base=tmp_path)
    assert [(row["origin"], row["domain"], row["weight"]) for row in records(pool)] == [
        ("first.jsonl:1", "own", 6.0),
        ("first.jsonl:2", "first", 1.0),
        ("second.jsonl:1", "given", 1.0),
    ]
    assert pool.domains == {"own": 1, "first": 1, "given": 1}


def test_a_batch_of_unreadable_lines_does_not_hide_the_format_of_the_rest(stories, jsonl):
    pool = load(Data(train=Source(jsonl(["{"] * 1000 + FOUR)), allow=LENIENT), "train", stories)
    assert (pool.report.unreadable, pool.report.kept) == (1000, 4)


def test_a_format_that_comes_later_in_a_file_is_named(stories, jsonl):
    path = jsonl([{"prompt": str(n), "completion": "yes"} for n in range(1000)] + [{"text": "odd"}] * 1000)
    with pytest.raises(DataError, match=r"line 1001: no field `prompt`.* found: text"):
        load(Data(train=Source(path, format="prompt_completion")), "train", stories)
    report = load(Data(train=Source(path), allow=LENIENT), "train", stories).report
    assert report.kept == 2000
    assert report.notes == (f"{Path(path).stem} mixes formats: prompt_completion, text",)


def test_the_same_tokens_with_other_labels_are_no_duplicate(stories, jsonl):
    same = [{"prompt": "a ", "completion": "yes"}, {"prompt": "", "completion": "a yes"}]
    pool = load(Data(train=Source(jsonl(same)), duplicates="drop"), "train", stories)
    assert (pool.report.kept, pool.report.duplicate) == (2, 0)
    assert overlap(pool, pool) == 2


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "BOM"])
def test_chat_templates_come_from_a_file_beside_the_recipe(stories, jsonl, tmp_path, start):
    (tmp_path / "chat.jinja").write_text(start + UNMARKED)
    data = Data(train=Source(jsonl(FOUR)), template="chat", chat_template="chat.jinja")
    row = load(data, "train", stories, base=tmp_path).dataset[0]
    assert stories.decode(row["input_ids"]) == "<|user|>\na <|end|>\n<|assistant|>\nyes<|end|>\n"
    assert stories.chat_template is None


@pytest.mark.parametrize("shown", [True, False])
def test_progress_counts_records(stories, jsonl, monkeypatch, shown):
    module: Any = sys.modules[load.__module__]
    made: list[Any] = []

    class Counting(module.Progress):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append((args, kwargs))

        def update(self, count=1):
            super().update(count)
            made.append(count)

    monkeypatch.setattr(module, "Progress", Counting)
    load(Data(train=Source(jsonl(FOUR))), "train", stories, progress=shown)
    assert made[0][1] == {"shown": shown}
    assert made[1:] == [1] * 4


def test_loader_workers_leave_the_pools_file_where_it_is(stories, jsonl):
    pool = load(Data(train=Source(jsonl(FOUR))), "train", stories)
    (file,) = {Path(item["filename"]) for item in pool.dataset.cache_files}
    held = hashlib.sha256(file.read_bytes()).digest()
    for _ in range(2):
        loader = torch.utils.data.DataLoader(
            pool.dataset,  # pyright: ignore[reportArgumentType]
            batch_size=2,
            num_workers=1,
            collate_fn=Collator.for_tokenizer(stories),
        )
        assert sum(len(batch["input_ids"]) for batch in loader) == 4
    assert hashlib.sha256(file.read_bytes()).digest() == held


def test_a_file_that_mixes_formats_says_so_if_its_prompts_differ(stories, tmp_path: Path):
    turns = [{"from": "human", "value": "a "}, {"from": "gpt", "value": "yes"}]
    rows = [{"conversations": turns}, *FOUR, {"text": "once upon a time"}]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Data(train=Source(str(tmp_path / "mixed.jsonl")), chat_template=UNMARKED, allow=LENIENT)
    pool = load(data, "train", stories)
    assert (pool.report.kept, pool.report.unreadable) == (6, 0)
    (note,) = [note for note in pool.report.notes if "written in 2 ways" in note]
    assert "those of prompt_completion, conversations" in note and "not read" not in " ".join(
        pool.report.notes
    )
    same = load(replace(data, template="chat"), "train", stories)
    assert not [note for note in same.report.notes if "written in" in note]
    assert list(same.dataset[0]["input_ids"]) == list(same.dataset[1]["input_ids"])
