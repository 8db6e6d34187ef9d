"""What every benchmark has in common: provenance, a result file that can be continued, paired statistics.

A claim is a script, its committed result file, and a row in `docs/results.md` (see `results.py`). This module
makes the file: machine, versions, revision, seeds, date and command next to the numbers, replaced atomically
after every finished run, so that a stopped benchmark goes on where it was. Verdicts are those of `gradwise
compare`: differences paired by seed, 95 % t intervals, p-values corrected over the arms of a table (Holm).
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gradwise
from gradwise.atomic import sync_files, write_json
from gradwise.report.statistics import BETTER, UNSEEN, UNTOLD, WORSE, Comparison, compare, holm, mean_sd

__all__ = [
    "BETTER",
    "DATA",
    "RESULTS",
    "ROOT",
    "UNSEEN",
    "UNTOLD",
    "WORSE",
    "Comparison",
    "ResultFile",
    "compare",
    "holm",
    "load_average",
    "made_whole",
    "mean_sd",
    "names_of",
    "parts_parser",
    "provenance",
    "source_digest",
]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
DATA = ROOT.parent / "shared" / "data"
"""Real data, beside the repository."""

PACKAGES = ("gradwise", "torch", "transformers", "accelerate", "datasets", "peft", "numpy", "scipy")


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


# ---- the command line --------------------------------------------------------------------------------------


def parts_parser(about: str | None, parts: Collection[str]) -> argparse.ArgumentParser:
    """For a benchmark of several parts, each with a result file of its own: `--parts` and `--out`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", type=names_of(parts), default=list(parts), help="comma-separated, of " + ", ".join(parts)
    )
    parser.add_argument("--out", type=Path, help="folder of the result files")
    return parser


def names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads comma-separated names from a command line and refuses unknown ones."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return parse


# ---- what benchmarks make for themselves -------------------------------------------------------------------


def made_whole(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder; where it is not there, `make` fills one of another name first: none is ever half made."""
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        sync_files(partial)
        partial.rename(folder)
    return folder


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

    def once(self, key: str, work: Callable[[], dict[str, Any]]) -> None:
        """Keep what `work` gives, unless it is there already."""
        if key in self:
            return
        start = time.perf_counter()
        self.add(key, json.loads(json.dumps(work())))
        told = f"{time.perf_counter() - start:.0f} s, load {load_average()}"
        print(f"{time.strftime('%H:%M:%S')} {key} ({told})", flush=True)

    def save(self) -> None:
        """Replace the file, atomically."""
        write_json(self.path, self.content)
