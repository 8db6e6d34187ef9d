"""DiReCT's solvers: how fast, against a general solver, against the published steps, at a million rows."""

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from frame import ROOT
from scipy.optimize import linprog

from gradwise.methods.direct import Direct
from gradwise.numerics import Rows, budgeted_top, least_cost, longest_sum
from gradwise.signals import Signals

sys.path.insert(0, str(ROOT))
from tests.methods.direct_oracle import published

KINDS = ("random", "half cost nothing", "ties", "one huge", "far apart")
LINEAR_SIZES = (1_000, 10_000, 100_000, 1_000_000)
GENERAL_UP_TO = 100_000
SOLVER_SIZES = (200, 2_000, 10_000, 50_000)
FLAT = 256
"""Flat directions, as where the authors' code was measured."""
MILLION, WIDTH = 1_000_000, 1024


def problem(kind: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and costs."""
    rng = np.random.default_rng(0)
    c, a = rng.standard_normal(n), rng.random(n)
    if kind == "half cost nothing":
        a[rng.random(n) < 0.5] = 0
    if kind == "ties":
        c, a = (rng.integers(0, 4, n).astype(float) for _ in range(2))
    if kind == "one huge":
        c[0], a[0] = 10, 1e6
    if kind == "far apart":
        a = np.exp(4 * rng.standard_normal(n))
        c = np.sqrt(a)
    return c, a


def linear(kind: str, n: int) -> dict[str, Any]:
    """One linear program, a tenth of the rows wanted: seconds, and the difference from HiGHS's optimum."""
    c, a = problem(kind, n)
    count = n // 10
    budget = max(least_cost(a, count), 0.3 * float(np.sort(a)[:-1].mean()) * count)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        found = budgeted_top(c, a, count, budget)
        seconds.append(time.perf_counter() - start)
    told: dict[str, Any] = {"seconds": round(statistics.median(seconds), 5)}
    if n <= GENERAL_UP_TO:
        exactly = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
        start = time.perf_counter()
        general = linprog(
            -c, A_ub=a[None], b_ub=[budget], A_eq=np.ones((1, n)), b_eq=[count], bounds=(0, 1),
            method="highs", options=exactly,
        )  # fmt: skip
        told["general_seconds"] = round(time.perf_counter() - start, 4)
        told["difference"] = float(f"{abs(found.objective + general.fun) / abs(general.fun):.2g}")
    return told


def movement(n: int, theirs: bool = True) -> dict[str, Any]:
    """The paper's problem on made-up flat gradients, ours and by the published steps; tau 0.6, K = N / 10."""
    rng = np.random.default_rng(n)
    common = rng.standard_normal(FLAT) * 0.15
    flat = (rng.standard_normal((n, FLAT)) * np.exp(-np.arange(FLAT) / 80) + common).astype(np.float32)
    a = rng.gamma(1.0, 1.0, n) * (0.3 + (flat @ common > 0.3))
    count = n // 10
    budget = 0.6 * float(a.mean()) * count
    start = time.perf_counter()
    found = longest_sum(Rows(flat), a, count, budget)
    told: dict[str, Any] = {
        "ours": {
            "seconds": round(time.perf_counter() - start, 4),
            "objective": float(f"{found.objective:.6g}"),
            "of_bound": round(found.objective / found.bound, 4),
            "over_budget": max(0.0, float(a[found.rows].sum()) / budget - 1),
        }
    }
    if theirs:
        start = time.perf_counter()
        other = published(flat.astype(np.float64), a, count, budget)
        told["published"] = {
            "seconds": round(time.perf_counter() - start, 2),
            "objective": float(f"{other.objective:.6g}"),
            "over_budget": float(f"{other.violation:.3g}"),
            "picks_over_budget": float(f"{other.picks_violation:.3g}"),
        }
        # Their picks may cost too much; what is found for as much money is the fair comparison.
        spent = max(budget, float(a[other.picks].sum()))
        told["at_their_cost"] = float(f"{longest_sum(Rows(flat), a, count, spent).objective:.6g}")
    return told


def million(objective: str) -> dict[str, Any]:
    """Both objectives over a million stored gradients of half precision; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grad.npy"
        _write(path)
        grad = np.load(path, mmap_mode="r")
        tokens = np.random.default_rng(1).integers(5, 200, MILLION).astype(np.int32)
        pool = Signals(MILLION, grad=grad, num_tokens=tokens)
        rows = np.random.default_rng(2).standard_normal((256, WIDTH)).astype(np.float32)
        validation = Signals(256, grad=rows * _decay() + _common(), num_tokens=tokens[:256])
        method: Any = Direct(fraction=0.1, tau=0.5, objective=objective)  # type: ignore[arg-type]
        start = time.perf_counter()
        found = method.select(pool, validation=validation)
        seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "picked": len(found.indices),
        "budget_used": found.told["budget_used"],
        "of_bound": round(found.told["objective"] / found.told["bound"], 6),
        "copies_left_out": found.told["copies_left_out"],
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
