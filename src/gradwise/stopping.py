"""Ctrl-C, SIGTERM and a lost terminal: who hears of them, and how soon.

Batch systems signal every process of a job, and torchrun passes on to its ranks what it receives itself. So
the same request can come several times within a moment, and reaches loader workers as well.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

MOMENT = 1.0
"""Seconds in which a second signal is taken for the same request."""


@contextmanager
def stoppable(first: Callable[[str], Any], again: Callable[[str], Any]) -> Iterator[None]:
    """Call `first` with the name of the first signal, and `again` with that of each later one.

    Signals that the process was asked to ignore (nohup, a job in the background) stay ignored. Only the main
    thread can handle signals; in another one nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process, before = os.getpid(), {each: signal.getsignal(each) for each in SIGNALS}
    requested_at: list[float] = []

    def handle(number: int, _: object) -> None:
        if os.getpid() != process:  # a forked process, until it has handlers of its own
            return
        now = time.monotonic()
        if not requested_at:
            requested_at.append(now)
            first(signal.Signals(number).name)
        elif now - requested_at[0] > MOMENT:
            again(signal.Signals(number).name)

    mine = [each for each, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for each in mine:
        signal.signal(each, handle)
    try:
        yield
    finally:
        for each in mine:
            signal.signal(each, before[each])


@contextmanager
def spared() -> Iterator[None]:
    """Processes started in here do not notice signals from the beginning on; see `spare_worker`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spare_worker(*_: object) -> None:
    """Leave signals to the parent, which stops its workers itself; a DataLoader's `worker_init_fn`.

    Of the parent's own SIGTERM the worker dies as before. It also ends when the parent dies, which torch's
    worker loop watches.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    while True:
        if signal.sigwaitinfo(SIGNALS).si_pid == parent:
            os._exit(0)
