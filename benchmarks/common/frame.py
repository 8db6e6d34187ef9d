"""Result files with their provenance, command lines of benchmarks, and folders that are complete or absent.

A benchmark is a script, its committed result file, and a page in `docs/results` (see `benchmarks.results`).
The result file holds machine, versions, revision, date and command next to the numbers. It is replaced
atomically after every finished measurement, so that an interrupted benchmark resumes where it stopped.
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
from pathlib import Path
from typing import Any

import transformers

import gradwise
from gradwise.atomic import sync_files, write_json
from gradwise.run.environment import environment

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
"""Models, pools and runs that benchmarks make; not part of the repository."""
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data"
"""Real data, beside the repository."""


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


def build_folder(folder: Path, fill: Callable[[Path], object]) -> Path:
    """The folder, complete. If it is absent, `fill` writes a temporary one, which is then renamed."""
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        sync_files(partial)
        partial.rename(folder)
    return folder


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


class Script(argparse.ArgumentParser):
    """Command line of a benchmark, with `--out`.

    Args: doc: the script's docstring. result: name of the result file without `.json`: subject, dash, part.
        With a word in capitals if it depends on another option; then `out` is None unless the user sets it.
    """

    def __init__(self, doc: str | None, result: str) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.result, path = result, RESULTS / f"{result}.json"
        about = f"result file, resumed if it exists (default: {path.relative_to(ROOT)})"
        default = None if any(map(str.isupper, result)) else path
        self.add_argument("--out", type=Path, default=default, help=about)

    def start(self, threads: int = 1) -> tuple[argparse.Namespace, ResultFile]:
        """Read the command line, open the result file of a part, and silence transformers."""
        options = self.parse_args()
        silence_libraries()
        subject, _, part = self.result.partition("-")
        print(f"results in {options.out}", flush=True)
        return options, ResultFile(options.out, subject, {"part": part}, threads)


def names_among(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads comma-separated names from a command line; rejects unknown ones."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return parse


def silence_libraries() -> None:
    """No warnings and bars of transformers."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
