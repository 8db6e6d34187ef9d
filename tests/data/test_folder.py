"""Folders of data: what a person put there as data is read, and the rest is named once or left out."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from gradwise.data import Source
from gradwise.data.read import read
from gradwise.errors import DataError

ROW = {"text": "a"}


def fill(folder: Path, *names: str) -> None:
    """Write a record that holds its file's name, or another file's usual contents."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            datasets.Dataset.from_list([{"text": name}]).to_parquet(path)
        else:
            path.write_text(json.dumps({"text": name}) + "\n")


def found(folder: Path, **given: Any) -> tuple[list[str], str]:
    """The names of the files read, and the note on the others."""
    parts = read(Source(str(folder), **given))
    names = [record.values["text"] for part in parts for record in part.records()]
    return names, "; ".join(part.note for part in parts if part.note).replace(str(folder), "HERE")


def test_hidden_files_backups_and_metadata_are_left_out(tmp_path):
    fill(tmp_path, "a.jsonl", "sub/b.json", "C.JSONL")
    fill(tmp_path, ".hidden.jsonl", ".cache/x.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "a.jsonl~")
    fill(
        tmp_path,
        "#a.jsonl#",
        "dataset_infos.json",
        "dataset_info.json",
        "__pycache__/x.json",
        ".gitattributes",
    )
    assert found(tmp_path) == (["C.JSONL", "a.jsonl", "sub/b.json"], "")


def test_what_else_lies_there_is_named_once(tmp_path):
    fill(tmp_path, "a.jsonl", "b.jsonl", "README.md", "notes.txt", "c.jsonl.gz", "sub/d.arrow")
    os.mkfifo(tmp_path / "pipe.jsonl")
    names, note = found(tmp_path)
    assert names == ["a.jsonl", "b.jsonl"]
    assert note == "not read in HERE: README.md, c.jsonl.gz, notes.txt, pipe.jsonl, sub/d.arrow"
    fill(tmp_path, *(f"{i}.txt" for i in range(9)))
    assert found(tmp_path)[1].endswith("3.txt, 4.txt and 9 more")


SHARDS = [f"data/{split}-0000{i}-of-00002.parquet" for split in ("test", "train") for i in range(2)]


def test_a_folder_as_the_hub_lays_it_out_has_splits(tmp_path):
    fill(tmp_path, *SHARDS, "README.md", "dataset_infos.json", ".gitattributes")
    names, note = found(tmp_path)
    assert names == SHARDS[2:]
    assert note == f"not read in HERE: README.md, {SHARDS[0]}, {SHARDS[1]}"
    assert found(tmp_path, split="test")[0] == SHARDS[:2]
    assert [part.name for part in read(Source(str(tmp_path)))] == ["train", "train"]
    with pytest.raises(DataError, match="no split 'dev'; it has test, train"):
        found(tmp_path, split="dev")


@pytest.mark.parametrize(
    ("names", "split", "read_names"),
    [
        (["train.jsonl", "test.jsonl", "more.jsonl"], None, ["train.jsonl"]),
        (["train.jsonl", "more.jsonl"], None, ["more.jsonl", "train.jsonl"]),
        (["test/x.json", "train/x.json"], None, ["train/x.json"]),
        (["a_dev.csv.jsonl", "a_training.jsonl"], "validation", ["a_dev.csv.jsonl"]),
        (["my-valid-1.jsonl", "train_2.jsonl"], "validation", ["my-valid-1.jsonl"]),
        (["attest.jsonl", "trainer.jsonl"], None, ["attest.jsonl", "trainer.jsonl"]),
        (["special-00000-of-00001.parquet", "train-00000-of-00001-0123456789abcdef.parquet"], "special",
         ["special-00000-of-00001.parquet"]),
    ],
)  # fmt: skip
def test_names_say_which_split_a_file_belongs_to(tmp_path, names, split, read_names):
    fill(tmp_path, *names)
    assert found(tmp_path, **({"split": split} if split else {}))[0] == read_names


def test_several_splits_without_train_must_be_chosen_from(tmp_path):
    fill(tmp_path, "test.jsonl", "valid.jsonl")
    with pytest.raises(DataError, match="no split 'train'; it has test, validation"):
        found(tmp_path)
    (tmp_path / "valid.jsonl").unlink()
    assert found(tmp_path)[0] == ["test.jsonl"]
    (tmp_path / "test.jsonl").rename(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="no split 'test'; its files name none"):
        found(tmp_path, split="test")


HEAD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: [main/test-*]}
- config_name: other
  data_files: other/*.jsonl
- config_name: third
  data_files: {train: "*.jsonl"}
---
# A data set
"""


def test_configurations_are_those_of_the_readme(tmp_path):
    fill(tmp_path, "main/train-1.jsonl", "main/test-1.jsonl", "other/x.jsonl", "top.jsonl")
    (tmp_path / "README.md").write_text(HEAD)
    assert found(tmp_path, config="main")[0] == ["main/train-1.jsonl"]
    assert found(tmp_path, config="main", split="test")[0] == ["main/test-1.jsonl"]
    assert found(tmp_path, config="other")[0] == ["other/x.jsonl"]
    with pytest.raises(DataError, match="several configurations; give one as `config`: main, other, third"):
        found(tmp_path)
    with pytest.raises(DataError, match=r"no configuration 'x'; its README\.md names main, other, third"):
        found(tmp_path, config="x")
    (tmp_path / "README.md").write_text(HEAD.replace("third", "default"))
    assert "top.jsonl" in found(tmp_path)[0]
    (tmp_path / "README.md").write_text("---\nconfigs: [{config_name: [}]\n---\n")
    with pytest.raises(DataError, match=r"README\.md cannot be read"):
        found(tmp_path)
    (tmp_path / "README.md").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"README\.md cannot be read"):
        found(tmp_path)


def test_links_are_followed_and_loops_are_not(tmp_path):
    fill(tmp_path / "elsewhere", "x.jsonl")
    folder = tmp_path / "data"
    fill(folder, "a.jsonl")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "linked.jsonl").symlink_to(tmp_path / "elsewhere" / "x.jsonl")
    (folder / "up").symlink_to(folder)
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    names, note = found(folder)
    assert names == ["a.jsonl", "x.jsonl", "x.jsonl"]
    assert note == "not read in HERE: gone.jsonl"


def test_a_folder_may_be_named_like_a_file(tmp_path):
    fill(tmp_path, "a.jsonl/b.jsonl")
    assert found(tmp_path)[0] == ["a.jsonl/b.jsonl"]
    assert found(tmp_path / "a.jsonl")[0] == ["a.jsonl/b.jsonl"]


def test_file_names_that_are_no_text_are_spelled_out(tmp_path):
    fill(tmp_path, "a.jsonl")
    (tmp_path / "a.jsonl").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b\n.jsonl"))
    (part,) = read(Source(str(tmp_path)))
    (record,) = part.records()
    assert (part.name, str(record.origin)) == ("\\udcff\x1b\\n", "\\udcff\x1b\\n.jsonl:1")


def configured(folder: Path, pattern: str) -> None:
    (folder / "README.md").write_text(
        f'---\nconfigs:\n- config_name: default\n  data_files: "{pattern}"\n---\n'
    )


@pytest.mark.parametrize(
    ("pattern", "read_names"),
    [
        ("**/*.jsonl", ["a.jsonl", "deep/er/c.jsonl", "deep/x.jsonl"]),
        ("./**/x.jsonl", ["deep/x.jsonl"]),
        ("deep/**/*.jsonl", ["deep/er/c.jsonl", "deep/x.jsonl"]),
        ("**/er/**/*", ["deep/er/c.jsonl"]),
        ("**/a.jsonl", ["a.jsonl"]),
    ],
)
def test_two_stars_stand_for_no_folder_as_well(tmp_path, pattern, read_names):
    fill(tmp_path, "a.jsonl", "deep/x.jsonl", "deep/er/c.jsonl", "aa.jsonl")
    (tmp_path / "aa.jsonl").rename(tmp_path / "aa.txt")
    configured(tmp_path, pattern)
    assert found(tmp_path)[0] == read_names


def test_a_name_behind_two_stars_is_the_whole_name(tmp_path):
    fill(tmp_path, "data.jsonl", "mydata.jsonl")
    configured(tmp_path, "**/data.jsonl")
    assert found(tmp_path)[0] == ["data.jsonl"]


def test_patterns_that_match_nothing_are_refused(tmp_path):
    """The folder disappeared from a list of sources."""
    fill(tmp_path, "a.jsonl")
    configured(tmp_path, "data/*.jsonl")
    with pytest.raises(DataError, match=r"README\.md matches none of its files \(a\.jsonl\); correct its"):
        found(tmp_path)


def test_no_other_split_is_read_for_one_that_matches_nothing(tmp_path):
    fill(tmp_path, "test.jsonl")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: {train: 'part-*', test: test.jsonl}\n---\n"
    )
    with pytest.raises(DataError, match=r"none of its files for the split 'train' \(test\.jsonl\); correct"):
        found(tmp_path)
    assert found(tmp_path, split="test")[0] == ["test.jsonl"]


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", ["\n", ""])
def test_long_heads_are_read_to_their_end(tmp_path, start, end):
    fill(tmp_path, "main/train-1.jsonl", "other/x.jsonl")
    long = "".join(f"# comment {number}\n" for number in range(10_000))
    head = HEAD.partition("# A data")[0].removesuffix("\n")
    (tmp_path / "README.md").write_text(start + head.replace("configs:", f"{long}configs:") + end)
    assert found(tmp_path, config="other")[0] == ["other/x.jsonl"]


@pytest.mark.parametrize("text", ["---\nconfigs: []\n", "---\n# A rule, and no head\n"])
def test_a_head_without_an_end_is_refused(tmp_path, text):
    fill(tmp_path, "a.jsonl")
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(DataError, match=r"it begins with --- and no line --- follows within 4,194,304"):
        found(tmp_path)
