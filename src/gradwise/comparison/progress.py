"""How far a comparison is: one bar over its runs on a terminal, a line for each run elsewhere."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gradwise.comparison.workers import Result, Task
from gradwise.console import say
from gradwise.report.reading import HELD_OUT_LOSS, RunResult, read_run
from gradwise.text import clean

TAIL = 8192
"""Bytes at the end of a record in which its last line surely lies."""

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs, {remaining} left{postfix}"


class ComparisonProgress:
    """Shows how a comparison proceeds.

    Args:
        bars: show a bar on standard error; otherwise a line per run goes to standard output.
    """

    def __init__(self, bars: bool) -> None:
        self.bars = bars
        self._bar: Any = None
        self._done = 0
        self._total = 0

    def say(self, sentence: str) -> None:
        """A line above the bar, or of its own."""
        if self.bars:
            tqdm.write(clean(sentence), file=sys.stderr)
        else:
            say(sentence)

    @contextmanager
    def runs(self, total: int) -> Iterator[None]:
        """While `total` runs are made."""
        self._total, self._done = total, 0
        # Explicitly not disabled: the command line turns off those of libraries where there is no terminal.
        with tqdm(
            total=total, desc="compare", bar_format=FORMAT, disable=not self.bars, smoothing=0.1
        ) as self._bar:
            yield

    def show_running(self, underway: list[Task]) -> None:
        """Show what is under way, and how far it is."""
        if not self.bars or self._bar is None:
            return
        self._bar.n = self._done + sum(_share_done(task) for task in underway)
        self._bar.set_postfix_str("; ".join(task.name for task in underway), refresh=True)

    def ended(self, result: Result) -> None:
        """One run has ended."""
        if result.stopped:
            self.say(f"{result.task.name}: stopped; the same command resumes it.")
            return
        self._done += 1
        if result.failure is not None:
            self.say(f"{result.task.name}: failed: {result.failure} See {result.task.log}.")
        elif not self.bars:
            run = read_run(result.task.log.parent, "", 0)
            self.say(f"[{self._done}/{self._total}] {result.task.name}: {_described(run)}")


def _described(run: RunResult) -> str:
    metric = HELD_OUT_LOSS if HELD_OUT_LOSS in run.scores else next(iter(run.scores), None)
    score = f"{metric} {run.scores[metric].value:.4f}, " if metric else ""
    return f"{score}{run.steps:,} steps, {run.seconds:,.1f} s ({run.deciding:,.1f} s of it deciding)"


def _share_done(task: Task) -> float:
    steps = task.arguments["recipe"].train.arguments["max_steps"]
    return min(1.0, _last_step(task.arguments["folder"] / "metrics.jsonl") / steps)


def _last_step(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        whole = [line for line in file.read().splitlines(keepends=True)[1:] if line.endswith(b"\n")]
    try:
        return json.loads(whole[-1])["step"]
    except (LookupError, ValueError, TypeError):  # nothing yet, or damaged: the run itself will say so
        return 0
