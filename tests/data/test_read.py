"""Reading: every format gives the same records, each with its place; what cannot be read is named."""

import csv
import json
from pathlib import Path

import datasets
import pytest

from gradwise.data import Source
from gradwise.data import read as module
from gradwise.data.files import count_rows
from gradwise.data.read import read
from gradwise.data.records import Record
from gradwise.errors import DataError

ROWS = [{"question": "one?", "answer": "1"}, {"question": 'two\nlines, a "quote"', "answer": "zwei €"}]


def everything(path: Path | str, **given) -> list[Record]:
    return [record for part in read(Source(str(path), **given)) for record in part.records()]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("\n\n".join(map(json.dumps, ROWS)))
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), encoding="utf-8-sig")
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["question", "answer"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("jsonl", ["data.jsonl:1", "data.jsonl:3"]),
        ("json", ["data.json:2", "data.json:6"]),
        ("csv", ["data.csv:2", "data.csv:3"]),
        ("parquet", ["data.parquet:1", "data.parquet:2"]),
    ],
)
def test_every_kind_of_file_gives_the_same_records_and_where_they_stand(tmp_path, kind, places):
    path = write(tmp_path, kind)
    found = everything(path)
    assert [record.values for record in found] == ROWS
    assert [str(record.origin) for record in found] == places
    assert count_rows(path) >= len(ROWS)


def test_a_line_of_csv_is_named_by_where_it_starts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n"1\n\n1",a\n2,b\n')
    assert [record.origin.number for record in everything(path)] == [2, 5]


def test_json_objects_keep_their_own_keys(tmp_path):
    """Through Arrow, each would be given the other's keys, and a column could not hold both 1 and "a"."""
    rows = [{"tools": [{"x": 1}], "n": 1}, {"tools": [{"y": {"z": 2}}], "n": "a"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [record.values for record in everything(path)] == rows


def test_real_files_read_whole(shared):
    assert len(everything(shared / "gsm8k" / "train.jsonl")) == 7473
    boolq = everything(shared / "commonsense" / "train" / "boolq.json")
    assert [record.values for record in boolq] == json.loads(
        (shared / "commonsense" / "train" / "boolq.json").read_text()
    )


def test_the_line_of_a_json_record_is_the_one_an_editor_shows(shared):
    path = shared / "dolly" / "dolly_3k.json"
    lines = path.read_text().split("\n")
    assert all(lines[record.origin.number - 1].strip() == "{" for record in everything(path))


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    (tmp_path / "README.md").write_text("not data")
    assert [str(r.origin) for r in everything(tmp_path)] == ["a.jsonl:1", "b.jsonl:1", "sub/c.jsonl:1"]


def test_saved_datasets_with_and_without_splits(tmp_path):
    flat = datasets.Dataset.from_list(ROWS)
    flat.save_to_disk(tmp_path / "flat")
    splits = datasets.DatasetDict({"train": flat, "extra": flat.select([1])})
    splits.save_to_disk(tmp_path / "splits")
    assert [record.values for record in everything(tmp_path / "flat")] == ROWS
    assert [record.values for record in everything(tmp_path / "splits")] == ROWS
    assert [str(r.origin) for r in everything(tmp_path / "splits", split="extra")] == ["splits:1"]
    with pytest.raises(DataError, match="no split 'test'; it has train, extra"):
        everything(tmp_path / "splits", split="test")
    with pytest.raises(DataError, match="split: train"):
        everything(tmp_path / "flat", split="train")


def test_a_name_that_is_nowhere_here_is_asked_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(module.datasets, "load_dataset", load_dataset)
    assert [str(record.origin) for record in everything("openai/gsm8k", config="main")] == [
        "openai/gsm8k:1",
        "openai/gsm8k:2",
    ]
    assert asked == [(("openai/gsm8k", "main"), {"split": "train"})]


def test_a_hub_that_does_not_answer_is_said_in_one_sentence(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("no route\nand a long tail")

    monkeypatch.setattr(module.datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"neither a file .* hub \(no route\)$"):
        read(Source("openai/gsm8k"))


@pytest.mark.parametrize("path", ["nowhere.jsonl", "/nowhere/at/all", "./nowhere", "a/b/c"])
def test_what_cannot_be_a_hub_name_is_a_missing_file(monkeypatch, path):
    monkeypatch.setattr(module.datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match="no file or folder"):
        read(Source(path))


def test_relative_paths_start_from_the_base(tmp_path):
    write(tmp_path, "jsonl")
    assert [part.name for part in read(Source("data.jsonl"), tmp_path)] == ["data"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "a"', "not JSON"),
        (b"[1]", "this is a list"),
        (b'{"text": "\xff"}', r"not UTF-8 \(byte 11 of the line\)"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_flawed_line_is_named_and_reading_continues(tmp_path, line, said):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    first, flawed, last = everything(path)
    assert (first.values, last.values) == ({"text": "a"}, {"text": "b"})
    assert flawed.origin.words == "train.jsonl, line 2"
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(flawed.problem)


@pytest.mark.parametrize(
    ("row", "said"), [(b"1", "1 values where"), (b"1,2,3", "3 values"), (b"\xff,2", "not UTF-8")]
)
def test_a_flawed_row_of_csv_is_named(tmp_path, row, said):
    path = tmp_path / "a.csv"
    path.write_bytes(b"question,answer\n" + row + b"\n3,4\n")
    flawed, last = everything(path)
    assert said in flawed.problem
    assert flawed.origin.number == 2
    assert last.values == {"question": "3", "answer": "4"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.txt", b"hello", r"'\.txt' are not read; known are \.jsonl"),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', r"a\.json, line 2: not JSON"),
        ("a.json", b'[{"a": 1}\n', r"a\.json, line 2: not JSON"),
        ("a.json", b'[{"a": 1} {"a": 2}]', r"a\.json, line 1: not JSON"),
        ("a.json", b'[{"a": 1}]\n{"a": 2}', "follows the end"),
        ("a.json", b'[{"a": 1},\n{"a": "\xff"}]', r"a\.json, line 2: not UTF-8"),
        ("a.csv", b"a,a\n1,2\n", "name each column once"),
        ("a.csv", b'a,b\n1,2\n3,"4\n', r"a\.csv, line 3: not CSV"),
        ("a.parquet", b"not parquet at all", r"a\.parquet: not a readable Parquet"),
    ],
)
def test_a_file_damaged_as_a_whole_is_refused_by_name_and_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        everything(tmp_path / name)


def test_a_folder_without_data_and_settings_without_meaning_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no file ending in"):
        everything(tmp_path)
    path = write(tmp_path, "jsonl")
    with pytest.raises(DataError, match="`config: main` means nothing"):
        everything(path, config="main")
    with pytest.raises(DataError, match="`split: test` means nothing"):
        everything(path, split="test")
