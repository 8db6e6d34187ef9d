"""What every benchmark has in common: provenance, a result file that can be continued, paired statistics.

A claim is a script, its committed result file, and a row in `docs/results.md` (see `results.py`). This module
makes the file: machine, versions, revision, seeds, date and command next to the numbers, replaced atomically
after every finished run, so that a stopped benchmark goes on where it was. And it makes the verdicts:
differences paired by seed, 95 % t intervals, p-values corrected over the arms of a table (Holm).
"""

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import gradwise
from gradwise.atomic import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
DATA = ROOT.parent / "shared" / "data"
"""Real data, beside the repository."""

PACKAGES = ("gradwise", "torch", "transformers", "accelerate", "datasets", "peft", "numpy", "scipy")
LEVEL = 0.05


# ---- where a number comes from -----------------------------------------------------------------------------


def provenance(threads: int) -> dict[str, Any]:
    """Machine, versions, revision, date and command; `threads` is what the numbers were measured with."""
    return {
        "command": _command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": _git("rev-parse", "HEAD"),
        "changed_source": (_git("status", "--porcelain", "--", "src") or "").splitlines(),
        "source_digest": source_digest(),
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "processors": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "threads": threads,
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def load_average() -> float:
    """Processes that ran over the last minute, on average: how quiet the machine is."""
    return round(os.getloadavg()[0], 2)


def source_digest() -> str:
    """SHA-256 over the sources of the gradwise imported: names the code where the revision does not."""
    folder, digest = Path(gradwise.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _command() -> str:
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script
    return " ".join(["python", str(shown), *sys.argv[1:]])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    try:
        told = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=True, cwd=ROOT
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.rstrip()


# ---- the result file ---------------------------------------------------------------------------------------


class ResultFile:
    """A benchmark's results as JSON: settings and provenance, and one entry per finished piece of work.

    Args:
        path: the file; read if it exists. benchmark: name of the benchmark, by which `results.py` finds its
        tables. settings: what all entries must share; a file made with other settings is refused. threads: as
        in `provenance`.
    """

    def __init__(self, path: Path, benchmark: str, settings: dict[str, Any], threads: int) -> None:
        self.path = path
        here = {
            "benchmark": benchmark,
            "settings": json.loads(json.dumps(settings)),
            "entries": {},
            "sessions": [],
        }
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else here
        self._check(here)
        self.session = len(self.content["sessions"])
        self.content["sessions"].append(provenance(threads))

    def _check(self, here: dict[str, Any]) -> None:
        there = self.content["settings"]
        names = [*dict.fromkeys([*there, *here["settings"]])]
        differ = [
            f"{name} was {there.get(name)!r}"
            for name in names
            if there.get(name) != here["settings"].get(name)
        ]
        if self.content["benchmark"] != here["benchmark"] or differ:
            told = "; ".join(differ) or f"it is of {self.content['benchmark']}"
            raise SystemExit(f"{self.path} was made with other settings ({told}); give another --out.")

    def __contains__(self, key: str) -> bool:
        return key in self.content["entries"]

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.content["entries"][key]

    def of_kind(self, kind: str) -> dict[str, dict[str, Any]]:
        """Entries whose key starts with `kind/`."""
        return {key: entry for key, entry in self.content["entries"].items() if key.startswith(f"{kind}/")}

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Keep one finished piece of work, with the session it was done in and how busy the machine was."""
        self.content["entries"][key] = {**entry, "session": self.session, "load_average": load_average()}
        self.save()

    def save(self) -> None:
        """Replace the file, atomically."""
        write_json(self.path, self.content)


# ---- statistics --------------------------------------------------------------------------------------------

BETTER, WORSE, UNSEEN = "better", "worse", "no difference seen"
UNTOLD = "too few seeds"


@dataclass(frozen=True)
class Comparison:
    """One arm against the reference, over the seeds that both have; lower values are better."""

    arm: str
    seeds: int
    mean: float
    sd: float
    difference: float
    """Mean of arm minus reference, paired by seed."""
    interval: tuple[float, float] | None
    """95 % t interval of the difference, not corrected; None with fewer than two pairs."""
    p: float | None
    """Two-sided, Holm-corrected over the arms of the table."""
    verdict: str


def compare(values: Mapping[str, Mapping[int, float]], reference: str) -> list[Comparison]:
    """Every other arm against `reference`.

    Args:
        values: by arm and seed; lower is better.
        reference: an arm of `values`.

    Returns:
        In the order of `values`, the reference left out.

    >>> found = compare({"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 0.5, 1: 1.49, 2: 2.51}}, "a")
    >>> found[0].verdict, round(found[0].difference, 2)
    ('better', -0.5)
    """
    base = values[reference]
    arms = [arm for arm in values if arm != reference and set(values[arm]) & set(base)]
    gaps = {
        arm: np.array([values[arm][s] - base[s] for s in sorted(set(values[arm]) & set(base))])
        for arm in arms
    }
    raw = {arm: _p_value(gap) for arm, gap in gaps.items()}
    corrected = holm({arm: p for arm, p in raw.items() if p is not None})
    return [_comparison(arm, values[arm], gaps[arm], corrected.get(arm)) for arm in arms]


def mean_sd(values: Mapping[int, float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; NaN for one value)."""
    found = np.array(list(values.values()))
    return float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else math.nan


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected, highest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - place)))
        corrected[name] = highest
    return corrected


def t_interval(differences: np.ndarray) -> tuple[float, float] | None:
    """95 % t interval of the mean, or None for fewer than two values."""
    count = len(differences)
    if count < 2:
        return None
    half = float(stats.t.ppf(1 - LEVEL / 2, count - 1) * differences.std(ddof=1) / math.sqrt(count))
    return float(differences.mean()) - half, float(differences.mean()) + half


def _p_value(differences: np.ndarray) -> float | None:
    if len(differences) < 2:
        return None
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    if error == 0:
        return 1.0 if differences.mean() == 0 else 0.0
    return float(2 * stats.t.sf(abs(differences.mean()) / error, len(differences) - 1))


def _comparison(arm: str, values: Mapping[int, float], gap: np.ndarray, p: float | None) -> Comparison:
    mean, sd = mean_sd(values)
    return Comparison(
        arm, len(gap), mean, sd, float(gap.mean()), t_interval(gap), p, _verdict(float(gap.mean()), p)
    )


def _verdict(difference: float, p: float | None) -> str:
    if p is None:
        return UNTOLD
    if p >= LEVEL:
        return UNSEEN
    return BETTER if difference < 0 else WORSE
