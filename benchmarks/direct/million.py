"""DiReCT over a million stored gradients of 1,024 half-precision numbers, both objectives, one core.

    python -m benchmarks.direct.million     # some minutes, 2 GB of temporary disk

Two percent of the gradients are copies. 100,000 are picked with tau 0.5 and 256 validation samples. Seconds
are from the store to the picks with their reasons. Each objective runs in a process of its own; its peak
memory includes the pages of the file.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.command_line import Script
from benchmarks.common.memory import peak_gib
from benchmarks.common.own_process import in_own_process
from benchmarks.common.tables import Claim, Content, Page, number, of_kind, table
from gradwise.methods.direct import Direct
from gradwise.signals import Signals

MILLION, WIDTH = 1_000_000, 1024
OBJECTIVES = ("curvature", "paper")


def measure(objective: str) -> dict[str, Any]:
    """Seconds of the selection and peak memory of this process."""
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
        path = Path(folder) / "grad.npy"
        _write(path)
        grad = np.load(path, mmap_mode="r")
        tokens = np.random.default_rng(1).integers(5, 200, MILLION).astype(np.int32)
        pool = Signals(MILLION, grad=grad, num_tokens=tokens)
        rows = np.random.default_rng(2).standard_normal((256, WIDTH)).astype(np.float32)
        validation = Signals(256, grad=rows * _decay() + _common(), num_tokens=tokens[:256])
        settings: Any = {"fraction": 0.1, "tau": 0.5, "objective": objective, "held_out_check": False}
        method = Direct(**settings)
        start = time.perf_counter()
        selection = method.select(pool, validation=validation)
        seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 1),
        "peak_gib": peak_gib(),
        "picked": len(selection.indices),
        "budget_used": selection.details["budget_used"],
        "of_bound": round(selection.details["objective"] / selection.details["bound"], 6),
        "copies_left_out": selection.details["copies_left_out"],
    }


def _decay() -> np.ndarray:
    return np.exp(-np.arange(WIDTH) / 200).astype(np.float32)


def _common() -> np.ndarray:
    return (0.2 * np.random.default_rng(3).standard_normal(WIDTH) * _decay()).astype(np.float32)


def _write(path: Path) -> None:
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(MILLION, WIDTH))
    rng = np.random.default_rng(0)
    for start in range(0, MILLION, 50_000):
        rows = rng.standard_normal((50_000, WIDTH), dtype=np.float32) * _decay() + _common()
        rows[::50] = rows[0]  # 2 % copies
        out[start : start + 50_000] = rows.astype(np.float16)
    out.flush()


def page(content: Content) -> Page:
    entries = of_kind(content, "million")
    rows = [
        [
            objective, number(entry["seconds"], 1), number(entry["peak_gib"], 2),
            f"{entry['copies_left_out']:,}", number(entry["budget_used"], 6), number(entry["of_bound"], 6),
        ]
        for objective, entry in entries.items()
    ]  # fmt: skip
    head = ["objective", "seconds", "GiB", "copies left out", "budget used", "objective / bound"]
    return Page(
        sections=[table(head, rows)],
        claims=[
            Claim(
                f"DiReCT over a million gradients on one core, objectives {', '.join(entries)}",
                ", ".join(f"{one['seconds']:.0f} s" for one in entries.values()),
            )
        ],
    )


SCRIPT = Script(__doc__, "direct-million")


def main() -> None:
    _, result = SCRIPT.start()
    for objective in OBJECTIVES:
        work = partial(in_own_process, "benchmarks.direct.million:measure", objective)
        result.once(f"million/{objective}", work)


if __name__ == "__main__":
    main()
