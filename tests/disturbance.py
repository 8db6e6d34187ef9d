"""Slow disks and kills: what happens at operations on files, the same on every machine."""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

WATCHED = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.listdir",
    "os.scandir",
}
"""The interpreter's audit events for operations on files."""


class Disturbance:
    """Makes operations on files below a folder slow, or kills the process at one of them.

    Args:
        folder: where.
        delays: the longest one in seconds, drawn for each operation.
        seed: of the draws.
        kill_at: number of the operation, if any.
    """

    def __init__(
        self, folder: Path, *, delays: float = 0.0, seed: int = 0, kill_at: int | None = None
    ) -> None:
        self.folder, self.delays, self.kill_at = str(folder), delays, kill_at
        self.count, self.random = 0, random.Random(seed)
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: Any) -> None:
        if event not in WATCHED or not str(arguments[0]).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.delays and self.random.random() < 0.25:
            time.sleep(self.delays * self.random.random())
