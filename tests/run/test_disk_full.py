"""A disk that takes no more is named where it was met: which file, what the system said, what to do."""

import json
import multiprocessing
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gradwise as gw
from gradwise.atomic import size_text, writing
from gradwise.run import train
from gradwise.run.order import order_samples
from gradwise.run.select import select_samples
from gradwise.run.signals import collect_signals
from tests.conftest import some
from tests.signals.processes import start

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

QUIET: Any = {"tell": lambda _: None, "progress": False}


@pytest.fixture
def recipe(stories: Path, tmp_path: Path) -> Callable[..., gw.Recipe]:
    """Samples of 16 tokens with a field of 3,000 characters that none of them reads."""
    lines = (stories.parent / "plays_train.jsonl").read_text().splitlines()[:12]
    rows = [
        json.dumps({"text": json.loads(line)["text"][:200], "note": f"{line[:50]}{'x' * 3000}"})
        for line in lines
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    base = {
        "model": {"name": str(stories)},
        "data": {"train": str(tmp_path / "train.jsonl"), "max_length": 16, "allow": {"cut": 1.0}},
        "train": {"batch_size": 4, "save_strategy": "steps", "save_steps": 1},
        "signals": {"grad_dim": 2048},
    }
    return lambda **sections: gw.Recipe.from_dict(base | sections)


def message(room: int, work: Callable[[], Any]) -> str:
    """What ends `work` in a process whose files may have `room` bytes, as on a disk that is full by then."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            work()
            theirs.send("finished")
        except gw.GradwiseError as error:
            theirs.send(str(error))
        except BaseException as error:
            theirs.send(f"{type(error).__name__}: {error}")

    process = start(limited)
    found = ours.recv()
    process.join()
    return found


WAYS: dict[str, tuple[int, Callable[[gw.Recipe, Path], Any], dict[str, Any], str]] = {
    "train, a checkpoint": (
        200_000, lambda recipe, out: train(recipe, out, **QUIET), {}, "out/checkpoints/checkpoint-1",
    ),
    "train, the model": (
        500_000,
        lambda recipe, out: train(recipe, out, **QUIET),
        {"train": {"batch_size": 4, "save_strategy": "no"}},
        "out/.gradwise-tmp-model",
    ),
    "train, the data in TMPDIR": (
        2_000, lambda recipe, out: train(recipe, out, **QUIET), {}, r"gradwise-data-\w+/\w+.arrow",
    ),
    "collect": (
        50_000, lambda recipe, out: collect_signals(recipe, out, want=("grad",), **QUIET), {}, "out/grad.npy",
    ),
    "select, the signals": (
        50_000,
        lambda recipe, out: select_samples(recipe, out, **QUIET),
        {"select": {"method": "grace", "count": 3, "candidates": "all", "importance": "alignment"}},
        "out/signals/grad.npy",
    ),
    "select, the records": (
        8_000,
        lambda recipe, out: select_samples(recipe, out, **QUIET),
        {"select": {"method": "length_top", "count": 9}},
        "out/records.jsonl",
    ),
    "order": (
        8_000, lambda recipe, out: order_samples(recipe, out, **QUIET), {}, "out/ordered.parquet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", some(WAYS))
def test_the_sentence_is_true(recipe: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    room, work, sections, path = WAYS[name]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("gradwise.data.loading._folder", _uncached)
    (tmp_path / "tmp").mkdir()
    settings = recipe(**sections)
    found = message(room, lambda: work(settings, tmp_path / "out"))
    assert re.match(rf"\S*{path} could not be written: .*(free\)\. Make room and |File too large)", found), (
        found
    )
    assert "Traceback" not in found
    # With room, the same call succeeds, whatever the failed one left.
    work(settings, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".gradwise-tmp-*"))


def _uncached() -> Any:
    from gradwise.temporary import TemporaryFolder

    return TemporaryFolder("data")


def test_a_damaged_model_is_not_taken_for_a_full_disk(recipe: Any, stories: Path, tmp_path: Path):
    broken = tmp_path / "model"
    broken.mkdir()
    for path in stories.iterdir():
        content = path.read_bytes()
        (broken / path.name).write_bytes(
            content[: len(content) // 2] if path.suffix == ".safetensors" else content
        )
    with pytest.raises(gw.GradwiseError) as caught:
        train(recipe(model={"name": str(broken)}), tmp_path / "out", **QUIET)
    assert "model" in str(caught.value)
    assert "room" not in str(caught.value) and "could not be written" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (28, r"No space left on device \(.* free\)\. Make room and"),
        (30, "Read-only file system.$"),
        (5, "Input/output error.$"),
    ],
)
def test_what_the_system_says(tmp_path: Path, number: int, said: str):
    with pytest.raises(gw.GradwiseError, match=rf"a could not be written: {said}"), writing(tmp_path / "a"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1 << 20, "1.0 MiB"), (5 << 40, "5,120.0 GiB")],
)
def test_sizes(size: int, text: str):
    assert size_text(size) == text
