"""What the workers' tests have done in other processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gradwise import RecipeError
from gradwise.comparison.workers import StoppedError, Task, WorkerPool


def settings() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "folder": str(Path.cwd()),
    }


def tell(text: str) -> str:
    print(text)
    print("an error", file=sys.stderr)
    subprocess.run(["echo", "from a child"], check=True)
    return text.upper()


def mistake() -> None:
    raise RecipeError("layers.active is 9; give less.")


def bug() -> None:
    raise ValueError("two\nlines")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaves() -> None:
    print("the last word", flush=True)
    os._exit(7)


def sleeps(begun: Path) -> None:
    begun.write_text(str(os.getpid()))
    time.sleep(60)
    begun.with_name("woke").touch()


def stops_when_asked(begun: Path) -> None:
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    begun.write_text(str(os.getpid()))
    while not asked:
        time.sleep(0.01)
    raise StoppedError


def side_by_side(folder: Path, name: str, others: int) -> float:
    """Returns once `others` tasks, this one among them, run at the same time."""
    (folder / name).touch()
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) < others:
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)
    return time.monotonic()


def counts_signals(begun: Path) -> None:
    seen = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda found, _: seen.append(found))
    begun.write_text(str(os.getpid()))
    while not seen:
        time.sleep(0.01)
    time.sleep(1)
    begun.with_name("seen").write_text(",".join(signal.Signals(number).name for number in seen))
    raise StoppedError


if __name__ == "__main__":  # a worker pool in a separate process: FUNCTION FILE LOG
    function, begun, log = sys.argv[1:]
    list(
        WorkerPool().run(
            [Task(function, f"tests.comparison.tasks:{function}", {"begun": Path(begun)}, Path(log))]
        )
    )
