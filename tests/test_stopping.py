"""Workers leave signals to their parent from their first instruction on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gradwise.stopping import SIGNALS, spared
from gradwise.training.batches import Batches
from gradwise.training.feeder import Feeder
from gradwise.training.plan import Plan

BLOCKED = "import signal; print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="has no signal masks")


def blocked_in_a_child() -> set[int]:
    printed = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    return {int(number) for number in printed.stdout.split()}


def test_processes_started_meanwhile_hear_of_no_signal() -> None:
    before = blocked_in_a_child()
    with spared():
        assert blocked_in_a_child() == before | {int(each) for each in SIGNALS}
    assert blocked_in_a_child() == before


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
def test_loader_workers_are_started_so(tmp_path: Path) -> None:
    # A signal may come before the worker could ask for anything, so its mask is read right after the fork.
    test, masks = os.getpid(), tmp_path / "masks"

    def note() -> None:
        if os.getppid() == test:
            mask = sorted(int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, []))
            with masks.open("a") as file:
                file.write(f"{mask}\n")

    hooks = [note]
    os.register_at_fork(after_in_child=lambda: [hook() for hook in hooks])
    try:
        batches = Batches(Plan.of([list(range(8))]), batch_size=4, micro_batch=4)
        feeder = Feeder(batches, list(range(8)), lambda rows: {"rows": rows}, num_workers=2)
        feeder.step(0)
        feeder.close()
    finally:
        hooks.clear()
    assert masks.read_text().splitlines() == [str(sorted(map(int, SIGNALS)))] * 2
