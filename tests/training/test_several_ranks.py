"""One process and two serve the same samples in the same order, draw the same layers, and end with the same
weights."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.signals.processes import ended, start_trainers
from tests.training import ranks_worker

pytestmark = pytest.mark.slow

RECIPES: dict[str, dict[str, Any]] = {
    "grass": {"layers": {"method": "grass", "active": 2, "period": 2, "probe": 2}},
    "all layers, loss_top, easy_first": {
        "select": {"method": "loss_top", "count": 21},
        "order": "easy_first",
    },
    "grace, refreshed, through GRASS's layers": {
        "select": {
            "method": "grace",
            "count": 18,
            "candidates": "all",
            "refresh_every": 2,
            "speeds": {"train": 0.01, "score": 0.003},
        },
        "layers": {"method": "grass", "active": 2, "period": 2, "probe": 2},
    },
    "d3, looking ahead": {
        "order": {
            "method": "d3",
            "units": "domains",
            "edges": "lookahead",
            "probes": 2,
            "target_samples": 4,
            "overhead": 2.0,
        },
    },
}


def run(
    ranks: int,
    folder: Path,
    data: Dataset,
    model: Path,
    recipe: dict[str, Any],
    *,
    resume: str | bool = False,
    streamed: bool = False,
    target: Dataset | None = None,
    **arguments: Any,
) -> Path:
    """Train, several ranks under torchrun; 22 or 21 samples in batches of 8 leave an uneven last step."""
    out = folder / f"ranks{ranks}"
    out.mkdir(exist_ok=True)
    data.save_to_disk(folder / "data")
    settings = {
        "model": str(model),
        "data": str(folder / "data"),
        "out": str(out),
        "recipe": recipe,
        "resume": resume,
        "streamed": streamed,
        "arguments": {
            "per_device_train_batch_size": 2 if ranks == 2 else 4,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "logging_steps": 1,
            **arguments,
        },
    }
    if target is not None:
        target.save_to_disk(folder / "target")
        settings["target"] = str(folder / "target")
    if ranks == 1:
        (process,) = start_trainers(1, folder, lambda _: ranks_worker.main(settings))
        assert ended(process, 300) == 0
        return out
    (folder / "settings.json").write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    address = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    subprocess.run(
        [*torchrun, *address, ranks_worker.__file__, str(folder / "settings.json")], check=True, timeout=300
    )
    return out


def served(out: Path, ranks: int) -> list[list[int]]:
    """The samples in the plan's order, put together from all ranks' passes."""
    seen = [json.loads((out / f"seen-{rank}.json").read_text()) for rank in range(ranks)]
    assert len({len(passes) for passes in seen}) == 1
    return [sample for turn in zip(*seen, strict=True) for rows in turn for sample in rows]


def draws(out: Path) -> list[list[int]]:
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [event["active"] for event in events if event["event"] == "layers"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.startswith("grace") else pytest.mark.exhaustive)
        for name in RECIPES
    ],
)
def test_one_rank_is_two_ranks(name: str, stories: Path, speeches: Dataset, tmp_path: Path) -> None:
    data = speeches.select(range(22))
    one, two = (run(ranks, tmp_path, data, stories, RECIPES[name]) for ranks in (1, 2))
    assert served(one, 1) == served(two, 2)
    assert len(served(one, 1)) == 2 * RECIPES[name].get("select", {"count": 22})["count"]
    assert draws(one) == draws(two)
    first, second = (torch.load(two / f"weights-{rank}.pt") for rank in range(2))
    alone = torch.load(one / "weights-0.pt")
    for key, values in first.items():
        assert torch.equal(values, second[key]), f"the ranks disagree on {key}"
        torch.testing.assert_close(values, alone[key], rtol=1e-3, atol=2e-4)
    losses = [
        [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (one, two)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("closeness", [None, 0.25])
def test_two_ranks_try_selections_or_not_as_one_does(
    closeness: float | None, stories: Path, speeches: Dataset, tmp_path: Path
) -> None:
    """The pool is close to the target, so that only null holds a trial."""
    trial = {"method": "trial", "contenders": ["grace", "dsir"], "count": 12, "steps": 2}
    data, target = speeches.select(range(22)), speeches.select(range(22, 34))
    recipe = {"select": {**trial, "max_closeness": closeness}}
    one, two = (run(ranks, tmp_path, data, stories, recipe, target=target) for ranks in (1, 2))
    found = []
    for out in (one, two):
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        found += [event for event in events if event["event"] == "select_trial"]
    assert len(found) == 2 and found[0]["winner"] == found[1]["winner"]
    assert ["losses" in event for event in found] == [closeness is None] * 2
    assert served(one, 1) == served(two, 2)


def test_a_stream_is_divided_between_ranks(stories: Path, speeches: Dataset, tmp_path: Path) -> None:
    """Four steps of eight are two epochs of sixteen."""
    data, recipe = speeches.select(range(16)), RECIPES["grass"]
    one, two = (run(ranks, tmp_path, data, stories, recipe, streamed=True, max_steps=4) for ranks in (1, 2))
    assert served(one, 1) == served(two, 2) == [*data["input_ids"]] * 2
    assert draws(one) == draws(two)
    alone = torch.load(one / "weights-0.pt")
    for rank in range(2):
        for key, values in torch.load(two / f"weights-{rank}.pt").items():
            torch.testing.assert_close(values, alone[key], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["grass", "grace, refreshed, through GRASS's layers", "d3, looking ahead"])
@pytest.mark.exhaustive
def test_two_ranks_resume_as_two_ranks(name: str, stories: Path, speeches: Dataset, tmp_path: Path) -> None:
    data, recipe = speeches.select(range(22)), RECIPES[name]
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = run(2, tmp_path, data, stories, recipe, **saving)
    expected, drawn = torch.load(whole / "weights-0.pt"), draws(whole)
    resumed = run(2, tmp_path, data, stories, recipe, resume=str(whole / "checkpoint-2"), **saving)
    for key, values in torch.load(resumed / "weights-1.pt").items():
        assert torch.equal(values, expected[key])
    assert draws(resumed) == drawn
