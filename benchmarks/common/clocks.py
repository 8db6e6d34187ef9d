"""Wall-clock and processor seconds of functions."""

import time
from collections.abc import Callable
from typing import Any


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turn(
    arms: dict[str, Callable[[int], Any]], rounds: int, *, warm: bool = True
) -> dict[str, list[tuple[float, float]]]:
    """Wall-clock and processor seconds of every arm in every round.

    Within a round the arms run one after the other, so that other work on the machine affects all of them.

    Args: arms: functions of the number of the round. rounds: how many are timed. warm: run every arm once
        before.
    """
    for arm in arms.values() if warm else ():
        arm(0)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for number in range(rounds):
        for name, arm in arms.items():
            seconds[name].append(timed(lambda arm=arm, number=number: arm(number)))
    return seconds


def least_processor_time(work: Callable[[], Any], repeats: int) -> float:
    """Processor seconds of the fastest repetition."""
    return min(timed(work)[1] for _ in range(repeats))


class Clock:
    """Seconds from one lap to the next."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, or since the start."""
        before, self.start = self.start, time.perf_counter()
        return self.start - before
