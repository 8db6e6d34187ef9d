"""Processes of one's own: what they get, how they end, and that none takes another down or stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradwise.comparison.workers import Result, Task, WorkerPool, cores

TASKS = "tests.comparison.tasks"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    return lambda function, **arguments: Task(
        function, f"{TASKS}:{function}", arguments, tmp_path / f"{function}.log"
    )


def wait_for(path: Path) -> int:
    end = time.monotonic() + 120
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    return int(path.read_text())


def gone(pid: int) -> bool:
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
class TestEnds:
    def test_one_that_fails_takes_no_other_down(self, task: Any, tmp_path: Path) -> None:
        names = ("mistake", "bug", "killed", "leaves", "settings")
        results = {result.task.name: result for result in WorkerPool().run(task(name) for name in names)}
        assert results["mistake"].failure == "layers.active is 9; give less."
        assert results["bug"].failure == "ValueError: two lines"
        assert results["killed"].failure == "killed by the system, most likely for want of memory"
        assert results["leaves"].failure == "ended with exit code 7: the last word"
        assert results["settings"].failure is None
        assert results["settings"].value["pid"] != os.getpid()
        assert "Traceback" in (tmp_path / "bug.log").read_text()
        assert (tmp_path / "mistake.log").read_text() == "gradwise: layers.active is 9; give less.\n"

    def test_everything_that_is_said_goes_behind_what_the_log_holds(self, task: Any, tmp_path: Path) -> None:
        (tmp_path / "tell.log").write_text("before\n")
        (result,) = WorkerPool().run([task("tell", text="hello")])
        assert result.value == "HELLO"
        assert set((tmp_path / "tell.log").read_text().splitlines()) == {
            "before",
            "hello",
            "an error",
            "from a child",
        }


class TestShares:
    def test_one_at_a_time_has_all_cores_but_what_the_user_says(
        self, task: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("OMP_NUM_THREADS")
        (result,) = WorkerPool().run([task("settings")])
        assert (result.value["threads"], result.value["gpus"]) == (cores(), None)
        assert result.value["folder"] == str(tmp_path)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert next(WorkerPool().run([task("settings")])).value["threads"] == 1

    def test_several_at_once_share_cores_and_have_a_gpu_each(
        self, task: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        jobs = 3
        results = list(WorkerPool(jobs).run(task("settings") for _ in range(3)))
        assert {result.value["threads"] for result in results} == {max(1, cores() // jobs)}
        assert {result.value["gpus"] for result in results} <= {"4", "7"}

    def test_as_many_at_once_as_jobs_and_in_order(self, task: Any, tmp_path: Path) -> None:
        folder = tmp_path / "met"
        folder.mkdir()
        seen: list[int] = []
        meeting = (task("side_by_side", folder=folder, name=str(number), others=2) for number in range(3))
        results = list(WorkerPool(2).run(meeting, on_poll=lambda underway: seen.append(len(underway))))
        assert [result.failure for result in results] == [None] * 3
        assert max(seen) <= 2


@pytest.mark.slow
class TestStopping:
    def stop_once_begun(self, begun: Path, number: signal.Signals = signal.SIGINT) -> None:
        def later() -> None:
            wait_for(begun)
            os.kill(os.getpid(), number)

        threading.Thread(target=later).start()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_one_that_can_resume_is_no_failure_and_nothing_new_begins(
        self, task: Any, tmp_path: Path, number: signal.Signals
    ) -> None:
        begun, pool = tmp_path / "begun", WorkerPool()
        self.stop_once_begun(begun, number)
        results = list(pool.run([task("stops_when_asked", begun=begun), task("settings")]))
        assert results == [Result(results[0].task, stopped=True)]
        assert pool.stops == 1

    def test_one_that_only_dies_is_none_either(self, task: Any, tmp_path: Path) -> None:
        begun = tmp_path / "begun"
        self.stop_once_begun(begun)
        (result,) = WorkerPool().run([task("sleeps", begun=begun)])
        assert (result.stopped, result.failure) == (True, None)

    def test_what_the_process_ignores_stops_nothing(self, task: Any) -> None:
        """As under nohup, when its terminal closes."""
        before, pool = signal.signal(signal.SIGHUP, signal.SIG_IGN), WorkerPool()
        try:
            results = list(
                pool.run([task("settings")], on_poll=lambda _: os.kill(os.getpid(), signal.SIGHUP))
            )
        finally:
            signal.signal(signal.SIGHUP, before)
        assert [result.stopped for result in results] == [False] and not pool.stops

    def test_signals_are_given_back(self, task: Any) -> None:
        before = signal.getsignal(signal.SIGTERM)
        list(WorkerPool().run([task("settings")]))
        assert signal.getsignal(signal.SIGTERM) == before

    def test_an_abandoned_pool_leaves_no_process_behind(self, task: Any, tmp_path: Path) -> None:
        begun = tmp_path / "begun"

        def interrupt(_: Any) -> None:
            if begun.exists():
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(WorkerPool().run([task("sleeps", begun=begun)], on_poll=interrupt))
        assert gone(wait_for(begun))
        assert not (tmp_path / "woke").exists()

    @staticmethod
    def separate_pool(function: str, folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", TASKS, function, str(folder / "begun"), str(folder / "log")]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    @pytest.mark.slow
    @pytest.mark.exhaustive
    def test_ctrl_c_on_a_terminal_asks_once_though_it_reaches_everybody(self, tmp_path: Path) -> None:
        parent = self.separate_pool("counts_signals", tmp_path)
        wait_for(tmp_path / "begun")
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.wait() == 0
        assert (tmp_path / "seen").read_text() == "SIGTERM"

    @pytest.mark.slow
    def test_a_killed_parent_leaves_nobody_behind(self, tmp_path: Path) -> None:
        parent = self.separate_pool("sleeps", tmp_path)
        pid = wait_for(tmp_path / "begun")
        parent.kill()
        parent.wait()
        assert gone(pid)
        assert not (tmp_path / "woke").exists()
