"""GRACE's benchmarks: pools are what they say, and a million in small."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common.folders import DATA
from benchmarks.grace import million, pools


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.skipif(not DATA.exists(), reason="the real data are not beside the repository")
def test_pools_are_what_they_say(tmp_path: Path) -> None:
    folder = pools.build(tmp_path / "grace")
    dirty, kind = read(folder / "dirty.jsonl"), pools.kinds(folder)
    assert np.bincount(kind).tolist() == [600, 480, 60, 60]
    text = ["\n".join((record["prompt"], record["completion"])) for record in dirty]
    distinct = {text[i] for i in np.flatnonzero(kind == 0)}
    copies = Counter(text[i] for i in np.flatnonzero(kind == 1))
    assert len(distinct) == 600
    assert set(copies.values()) == {20}
    assert set(copies) < distinct
    assert {record["domain"] for record in dirty} == set(pools.CLEAN)
    held_out = {record["prompt"] for name in ("check", "rates") for record in read(folder / f"{name}.jsonl")}
    clean = read(folder / "clean.jsonl")
    assert len({record["prompt"] for record in clean}) == len(clean) == 1200
    assert held_out.isdisjoint(record["prompt"] for record in [*clean, *dirty])


@pytest.mark.exhaustive
def test_a_million_in_small() -> None:
    pytest.importorskip("faiss")
    entry = million.measure(rows=4000)
    assert (entry["nodes"], entry["picked"], entry["anchors"]) == (4000, 400, 200)
    assert entry["recall"] >= 0.95
    assert 0 < entry["moved"] < entry["anchors"]
    assert entry["searched"] >= entry["moved"]
