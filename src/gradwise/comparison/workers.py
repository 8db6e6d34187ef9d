"""Work in processes of its own, several at once, so that one that fails takes nothing else down.

Processes are forked off a server that has done the imports (seconds) and nothing else: no accelerator is
touched in it. Each has its output in a file, and dies with the process that asked for it, however that ends.

On Ctrl-C, SIGTERM or SIGHUP everything under way is asked to stop, once for each time the signal comes: runs
then save a checkpoint, and at once the second time.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from gradwise.atomic import writing
from gradwise.console import guard_streams, say
from gradwise.failures import sentence_on
from gradwise.stopping import SIGNALS, spared, stoppable
from gradwise.text import described

PRELOADED = "gradwise.comparison.preloaded"

OUT_OF_MEMORY = -signal.SIGKILL
"""How a process ends that the system kills for its memory."""

POLL_SECONDS = 0.5
"""Seconds between two checks of running tasks."""


@dataclass(frozen=True)
class Task:
    """Something to do in a process of its own."""

    name: str
    call: str
    """`package.module:function`, imported there and not here, where it would only take time."""
    arguments: dict[str, Any]
    log: Path
    """Gets what it prints, behind what is there."""


@dataclass(frozen=True)
class Result:
    """How a task ended: with a value, or with the reason why there is none."""

    task: Task
    value: Any = None
    failure: str | None = None
    stopped: bool = False
    """Because it was asked to stop, which is no failure."""


@dataclass(eq=False)
class RunningTask:
    """A task whose process runs."""

    task: Task
    process: Any
    answers: Any
    slot: int
    answer: tuple[str, Any] | None = None


@dataclass
class WorkerPool:
    """Runs tasks, at most `jobs` at once, sharing cores and GPUs evenly.

    Args:
        jobs: processes at once; each has its share of the cores and, where there are GPUs, one of them.
    """

    jobs: int = 1
    stops: int = 0
    """How often everything was asked to stop."""
    underway: list[RunningTask] = field(default_factory=list)

    def run(
        self, tasks: Iterable[Task], on_poll: Callable[[list[Task]], None] | None = None
    ) -> Iterator[Result]:
        """Do all tasks, in order as room comes free, and give their results as they end.

        Args:
            tasks: asked for one by one; none is begun after a stop.
            on_poll: called at intervals with the running tasks.
        """
        waiting = iter(tasks)
        start_server()
        with stoppable(self._stop, self._stop):
            try:
                while True:
                    self._fill(waiting)
                    if not self.underway:
                        return
                    yield from self._collect_ended()
                    if on_poll is not None:
                        on_poll([one.task for one in self.underway])
            finally:
                for one in self.underway:
                    # Only after an exception of this process: runs that were asked to stop have ended by
                    # themselves.
                    one.process.kill()
                    one.process.join()
                self.underway.clear()

    def _fill(self, waiting: Iterator[Task]) -> None:
        while len(self.underway) < self.jobs and not self.stops:
            task = next(waiting, None)
            if task is None:
                return
            # The slot decides the GPU: two runs share one only where there are fewer GPUs than jobs.
            free = min(set(range(self.jobs)) - {one.slot for one in self.underway})
            self.underway.append(_start(task, free, self.jobs))

    def _collect_ended(self) -> Iterator[Result]:
        handles = [one.process.sentinel for one in self.underway] + [
            one.answers for one in self.underway if one.answer is None
        ]
        multiprocessing.connection.wait(handles, timeout=POLL_SECONDS)
        for one in list(self.underway):
            with contextlib.suppress(EOFError, OSError):
                if one.answer is None and one.answers.poll():
                    one.answer = one.answers.recv()
            if not one.process.is_alive():
                one.process.join()
                self.underway.remove(one)
                yield self._result(one)

    def _result(self, one: RunningTask) -> Result:
        kind, value = one.answer or ("died", None)
        code = one.process.exitcode
        if kind == "done":
            return Result(one.task, value=value)
        # A process that the signal reached before it could handle it has nothing to save yet.
        if kind == "stopped" or (kind == "died" and self.stops and code in (-signal.SIGTERM, -signal.SIGINT)):
            return Result(one.task, stopped=True)
        return Result(one.task, failure=value if kind == "failed" else _death(code, one.task.log))

    def _stop(self, _: str) -> None:
        self.stops += 1
        for one in self.underway:
            one.process.terminate()


def start_server() -> None:
    """Let the server begin its imports; does nothing when it has."""
    multiprocessing.set_forkserver_preload([PRELOADED])
    # A signal to the whole process group is for this process, which asks each run: without their server the
    # runs would count as dead before they have saved. The tracker comes first, since it unblocks signals.
    multiprocessing.resource_tracker.ensure_running()
    with spared():
        multiprocessing.forkserver.ensure_running()


def _start(task: Task, slot: int, jobs: int) -> RunningTask:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, theirs, _share(slot, jobs)), name=task.name)
    process.start()
    # Only the child holds this end now, so that its death closes the pipe.
    theirs.close()
    return RunningTask(task, process, ours, slot)


@dataclass(frozen=True)
class MachineShare:
    """What of the machine one process gets."""

    threads: int
    gpu: str | None


def _share(slot: int, jobs: int) -> MachineShare:
    thread_setting = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, cores() // jobs)
    if thread_setting.isdecimal():
        threads = min(threads, max(1, int(thread_setting)))
    gpus = _gpus()
    return MachineShare(threads, gpus[slot % len(gpus)] if len(gpus) > 1 else None)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is not None:
        return [name for name in seen.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _death(code: int | None, log: Path) -> str:
    if code == OUT_OF_MEMORY:
        return "killed by the system, most likely for want of memory"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    last = f": {lines[-1].strip()[:200]}" if lines else ""
    how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    return f"ended {how}{last}"


# ---- in the process ----------------------------------------------------------------------------------------


def _work(task: Task, answers: Any, share: MachineShare) -> None:
    # A session of its own: Ctrl-C on the terminal is for the parent, which then asks once.
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # which it has blocked from its server
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if share.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = share.gpu
    import torch

    # Two torch threads beside another job on two cores took ten times as long as one (docs/log.md).
    torch.set_num_threads(share.threads)
    try:
        _redirect(task.log)
        module, _, function = task.call.partition(":")
        answers.send(("done", getattr(import_module(module), function)(**task.arguments)))
    except (StoppedError, KeyboardInterrupt):
        answers.send(("stopped", None))
    except BaseException as error:
        sentence = sentence_on(error)
        say(f"gradwise: {sentence}" if sentence else traceback.format_exc())
        answers.send(("failed", sentence or described(error)))


class StoppedError(Exception):
    """Raised by a task that was asked to stop and can be resumed."""


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A run can be killed at any moment and resumes from its last checkpoint.
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _redirect(log: Path) -> None:
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    guard_streams()  # a full disk behind the log ends no run
