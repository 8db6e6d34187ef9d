"""Forked processes: as real as any to locks, kills and ranks, and without the seconds that imports take."""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState

from gradwise.data import Collator
from gradwise.signals import Signals
from gradwise.signals.request import QUANTITIES

_FORK = multiprocessing.get_context("fork")


def start(function: Callable[..., Any], *args: Any) -> Any:
    """Run in a child of this process; what it raises goes to standard error, and its exit status is 1."""

    def run() -> None:
        torch.set_num_threads(1)
        try:
            function(*args)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    process = _FORK.Process(target=run, daemon=True)
    process.start()
    return process


def ended(process: Any, seconds: float = 60.0) -> int:
    """Exit status, negative the signal; waits."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise AssertionError("a process hangs")
    return process.exitcode


def run(function: Callable[..., Any], *args: Any) -> None:
    assert ended(start(function, *args)) == 0


def start_ranks(count: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run on several ranks that talk through gloo; `function` gets its rank first."""
    address = folder / f"rendezvous-{time.time_ns()}"

    def one(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=count)
        function(rank, *args)
        dist.destroy_process_group()

    return [start(one, rank) for rank in range(count)]


def start_trainers(count: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """As `start_ranks`, with the variables by which a Trainer under torchrun finds its rank."""

    def one(rank: int, *args: Any) -> None:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in ranks.items()})
        # Trainers of the process that this one is forked off had other ranks.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        function(rank, *args)
        dist.barrier()

    return start_ranks(count, folder, one, *args)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class Slow:
    """A collator that takes its time over each batch, so that a kill comes in the middle."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, rows: list[Any]) -> Any:
        time.sleep(self.seconds)
        return Collator(0)(rows)


def contents(store: Path) -> dict[str, Any]:
    """Every byte of a store but the time spent."""
    manifest = json.loads((store / "manifest.json").read_text())
    manifest.pop("seconds")
    # The times at which the files were written are their own.
    manifest["digests"] = {name: digest for name, (_, digest) in manifest.get("digests", {}).items()}
    files = {path.name: path.read_bytes() for path in sorted(store.glob("*.npy"))}
    return files | {"done": (store / "done").read_bytes(), "manifest": manifest}


def same_arrays(one: Signals, other: Signals) -> None:
    """Bit for bit, NaN included."""
    for name in (*QUANTITIES, "num_tokens", "ok"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.dtype == theirs.dtype, name
            assert np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f"), name
    assert {k: v.tolist() for k, v in one.problems.items()} == {
        k: v.tolist() for k, v in other.problems.items()
    }
