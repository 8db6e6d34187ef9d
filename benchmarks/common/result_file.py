"""Result files with their provenance.

A benchmark is a script, its committed result file, and a page in `docs/results` (see `benchmarks.results`).
The result file holds machine, versions, revision, date and command next to the numbers. It is replaced
atomically after every finished measurement, so that an interrupted benchmark resumes where it stopped.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gradwise
from benchmarks.common.folders import ROOT
from gradwise.atomic import write_json
from gradwise.run.environment import environment


def provenance(threads: int) -> dict[str, Any]:
    """Machine, versions, revision, date and command; `threads` is the number that the benchmark ran with."""
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
        "versions": environment(data={}, model={})["versions"],
    }


def load_average() -> float:
    """Mean number of running processes over the last minute: how quiet the machine is."""
    return round(os.getloadavg()[0], 2)


def source_digest() -> str:
    """SHA-256 over the sources of the imported gradwise; identifies uncommitted code."""
    folder, digest = Path(gradwise.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _command() -> str:
    script, arguments = Path(sys.argv[0]).resolve(), sys.argv[1:]
    if script.is_relative_to(ROOT):
        module = ".".join(script.relative_to(ROOT).with_suffix("").parts)
        return " ".join(["python -m", module, *arguments])
    return " ".join(["python", str(script), *arguments])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(*arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip()


class ResultFile:
    """Results of a benchmark as JSON: settings, provenance of every session, an entry per measurement.

    Args:
        path: the file; read if it exists. benchmark: name of the subject. settings: values that all entries
        share; a file with other settings is rejected. threads: as in `provenance`.
    """

    def __init__(self, path: Path, benchmark: str, settings: dict[str, Any], threads: int = 1) -> None:
        self.path = path
        empty = {
            "benchmark": benchmark,
            "settings": json.loads(json.dumps(settings)),
            "entries": {},
            "sessions": [],
        }
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else empty
        self._check(empty)
        self.session = len(self.content["sessions"])
        self.content["sessions"].append(provenance(threads))

    def _check(self, expected: dict[str, Any]) -> None:
        before, now = self.content["settings"], expected["settings"]
        names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
        if self.content["benchmark"] != expected["benchmark"]:
            raise SystemExit(f"{self.path} belongs to {self.content['benchmark']}; choose another --out.")
        if names:
            differences = "; ".join(f"{name} was {before.get(name)!r}" for name in names)
            raise SystemExit(f"{self.path} has other settings ({differences}); choose another --out.")

    def __contains__(self, key: str) -> bool:
        return key in self.content["entries"]

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.content["entries"][key]

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Keep a finished measurement with its session and the load of the machine."""
        self.content["entries"][key] = {**entry, "session": self.session, "load_average": load_average()}
        self.save()

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Keep what `measure` returns; skip it if the file has it already."""
        if key in self:
            return
        start = time.perf_counter()
        self.add(key, json.loads(json.dumps(measure())))
        seconds = time.perf_counter() - start
        print(f"{time.strftime('%H:%M:%S')} {key} ({seconds:.0f} s, load {load_average()})", flush=True)

    def save(self) -> None:
        """Replace the file, atomically."""
        write_json(self.path, self.content)
