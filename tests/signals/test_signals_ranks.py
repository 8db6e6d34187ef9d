"""One rank or several: the same arrays in memory and the same bytes on disk; a rank that is lost costs its
block, and nothing hangs."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradwise import SignalError, Signals
from gradwise.folders import claimed
from gradwise.signals import collect
from tests.signals.processes import Slow, contents, ended, kill_self, same_arrays, start_ranks
from tests.signals.zoo import make, samples

POOL = samples(24)
QUANTITIES: Any = ("loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding")

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def collected(store: Path | None, pool: Any = POOL, model: Any = None, **options: Any) -> Signals:
    settings: Any = {"want": QUANTITIES, "grad_dim": 16, "batch_tokens": 40, "progress": False} | options
    return collect(model or make("Llama"), pool, store=store, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one rank."""
    path = tmp_path_factory.mktemp("one") / "store"
    collected(path)
    return path


def _keep(rank: int, folder: Path) -> None:
    signals = collected(None)
    arrays = {name: getattr(signals, name) for name in (*QUANTITIES, "num_tokens", "ok")}
    np.savez(folder / f"rank{rank}.npz", **arrays)


def _to_store(rank: int, store: Path) -> None:
    assert collected(store).loss is not None


@pytest.mark.parametrize("ranks", [2, 3])
def test_in_memory(tmp_path: Path, whole: Path, ranks: int):
    """Every rank holds all rows."""
    assert [ended(process) for process in start_ranks(ranks, tmp_path, _keep, tmp_path)] == [0] * ranks
    for rank in range(ranks):
        same_arrays(Signals(len(POOL), **np.load(tmp_path / f"rank{rank}.npz")), Signals.open(whole))


@pytest.mark.parametrize("ranks", [2, 3])
def test_in_a_store(tmp_path: Path, whole: Path, ranks: int):
    store = tmp_path / "store"
    assert [ended(process) for process in start_ranks(ranks, tmp_path, _to_store, store)] == [0] * ranks
    assert contents(store) == contents(whole)


def _late(rank: int, store: Path) -> None:
    """The second rank comes to the work when the first has done all of its own."""
    from gradwise.signals.store import Store

    inner = Store.fill

    def fill(self: Store, name: str, values: Any) -> None:
        time.sleep(1.0 * rank)
        inner(self, name, values)

    Store.fill = fill  # type: ignore[method-assign]
    collected(store)


def test_a_rank_that_comes_late(tmp_path: Path, whole: Path):
    """Which blocks are left is settled before any is done."""
    store = tmp_path / "store"
    assert [ended(process) for process in start_ranks(2, tmp_path, _late, store)] == [0, 0]
    assert contents(store) == contents(whole)


def _one_dies(rank: int, store: Path, victim: int) -> None:
    def collator(rows: Any) -> Any:
        done = store / "done"
        if rank == victim and done.exists() and any(done.read_bytes()):  # the engine check is over
            kill_self()
        return Slow(0.0)(rows)

    collected(store, collator=collator)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("then", [1, 2])
def test_killing_one_rank(tmp_path: Path, whole: Path, victim: int, then: int):
    """The other ends with an error rather than waiting; what they had done stays done, also where fewer ranks
    resume."""
    store = tmp_path / "store"
    processes = start_ranks(2, tmp_path, _one_dies, store, victim)
    status = [ended(process) for process in processes]
    assert status[victim] == -9
    assert status[1 - victim] == 1
    done = np.frombuffer((store / "done").read_bytes(), dtype=np.uint8)
    assert 0 < done.sum() < len(done)
    with pytest.raises(SignalError, match="stopped after"):
        Signals.open(store)
    assert [ended(process) for process in start_ranks(then, tmp_path, _to_store, store)] == [0] * then
    assert contents(store) == contents(whole)


def test_one_rank_resumes_what_several_began_and_several_what_one_began(tmp_path: Path, whole: Path):
    store = tmp_path / "store"
    assert ended(start_ranks(1, tmp_path, _one_dies, store, 0)[0]) == -9
    assert [ended(process) for process in start_ranks(2, tmp_path, _to_store, store)] == [0, 0]
    assert contents(store) == contents(whole)


def _refused(rank: int, store: Path, options: Any, sentence: str) -> None:
    with pytest.raises(SignalError, match=sentence):
        collected(store, **options)


class TestEveryRankIsTold:
    """A problem that the first rank finds must not leave the others waiting."""

    def check(self, tmp_path: Path, store: Path | None, sentence: str, **options: Any) -> None:
        processes = start_ranks(2, tmp_path, _refused, store, options, sentence)
        assert [ended(process, 30) for process in processes] == [0, 0]

    def test_another_scoring_run(self, tmp_path: Path):
        collected(tmp_path / "store", want="loss")
        self.check(tmp_path, tmp_path / "store", "another request")

    def test_another_process(self, tmp_path: Path):
        with claimed(tmp_path / "store", "signals"):
            self.check(tmp_path, tmp_path / "store", "Another process is writing")

    def test_a_folder_that_cannot_be(self, tmp_path: Path):
        (tmp_path / "store").write_text("mine")
        self.check(tmp_path, tmp_path / "store", "is a file, not a folder")

    def test_nothing_to_measure(self, tmp_path: Path):
        self.check(tmp_path, None, "None of the 1 samples", pool=[{"input_ids": [1], "labels": [1]}])


def _another_model(rank: int, store: Path | None, sentence: str) -> None:
    model = make("Llama")
    with torch.no_grad():
        model.lm_head.weight += 1e-3 * rank
    with pytest.raises(SignalError, match=sentence):
        collected(store, model=model)


@pytest.mark.parametrize("in_store", [True, False])
def test_ranks_with_other_weights(tmp_path: Path, in_store: bool):
    """Rows of two models must not stand in one array."""
    store = tmp_path / "store" if in_store else None
    sentence = r"Rank 1 would measure something else than rank 0 \(weights differ\)"
    processes = start_ranks(2, tmp_path, _another_model, store, sentence)
    assert [ended(process, 30) for process in processes] == [0, 0]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_under_torchrun(tmp_path: Path, whole: Path):
    """For real: two processes of their own, one of them killed in the middle; then started again."""
    store = tmp_path / "store"
    assert _torchrun(store, 1) != 0
    done = np.frombuffer((store / "done").read_bytes(), dtype=np.uint8)
    assert 0 < done.sum() < len(done)
    assert _torchrun(store) == 0
    assert contents(store) == contents(whole)


def _torchrun(store: Path, *victim: int) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ["--master-addr", "127.0.0.1", "--master-port", str(port), "--nproc-per-node", "2"]
    worker = str(Path(__file__).with_name("collect_worker.py"))
    command = [sys.executable, "-m", "torch.distributed.run", *address, worker, str(store), *map(str, victim)]
    return subprocess.run(command, timeout=300).returncode
