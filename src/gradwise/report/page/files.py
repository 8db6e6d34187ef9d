"""Reads a run directory in which files may be missing or damaged; each of these is named in one
sentence, and the rest is still read."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet
import yaml

from gradwise.atomic import difference
from gradwise.errors import GradwiseError
from gradwise.folders import MARKER, read_marker
from gradwise.stored import damaged, read_json
from gradwise.training.plan import Plan

Line = dict[str, Any]
T = TypeVar("T")

MODEL = "model"


@dataclass
class RunFiles:
    """The contents of one run directory."""

    path: Path
    missing: list[str] = field(default_factory=list)
    recipe: Line = field(default_factory=dict)
    environment: Line = field(default_factory=dict)
    metrics: list[Line] = field(default_factory=list)
    events: list[Line] = field(default_factory=list)
    scores: Line = field(default_factory=dict)
    plan: Plan | None = None

    @classmethod
    def read(cls, path: Path) -> "RunFiles":
        """Read a run directory, except for the files that `table` and `details` read."""
        run = cls(path)
        run.metrics, run.events = run._lines("metrics.jsonl", "step"), run._lines("events.jsonl", "event")
        run.recipe = run.take("recipe.yaml", _mapping, {})
        run.environment = run.take("environment.json", read_json, {}, needed=run._is_command())
        run.scores = run.take("scores.json", _scores, {}, needed=bool(run.finished) and run._is_scored())
        run.plan = run.take("plan/plan.safetensors", Plan.load, None)
        run._check_end()
        run._check_model()
        return run

    @property
    def finished(self) -> Line:
        """The event at the end of the run, or an empty one."""
        return next((event for event in reversed(self.events) if event["event"] == "finished"), {})

    def of(self, kind: str) -> list[Line]:
        """The events of a kind."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def steps(self) -> list[Line]:
        """The lines of training steps."""
        return [line for line in self.metrics if isinstance(line.get("loss"), int | float)]

    def section(self, name: str) -> Line:
        """A section of the recipe; empty where it is unset or not known."""
        settings = self.recipe.get(name)
        if isinstance(settings, str):
            return {"method": settings}
        return settings if isinstance(settings, dict) else {}

    def steps_of(self, kind: str) -> set[int]:
        """Steps for which the plan has files of a kind, such as `picks`."""
        names = (path.stem.partition("-")[2] for path in self.path.glob(f"plan/{kind}-*"))
        return {int(name) for name in names if name.isdigit()}

    # ---- the files -----------------------------------------------------------------------------------------

    def table(self, name: str) -> list[Line]:
        """The rows of a Parquet file below the run directory; none where it cannot be read."""
        return self.take(name, lambda path: pyarrow.parquet.read_table(path).to_pylist(), [])

    def details(self, name: str) -> Line:
        """A JSON object below the run directory."""
        return self.take(name, read_json, {})

    def take(self, name: str, read: Callable[[Path], T], instead: T, *, needed: bool = True) -> T:
        """What `read` makes of a file. If it is damaged, or missing though `needed`, a sentence is added to
        `missing` and `instead` is returned."""
        path = self.path / name
        if not path.is_file():
            if needed:
                self.missing.append(f"{name} is missing.")
            return instead
        try:
            with damaged(path):
                return read(path)
        except GradwiseError:
            self.missing.append(f"{name} is damaged and was left out.")
            return instead

    def _lines(self, name: str, key: str) -> list[Line]:
        """The whole lines of a JSONL file that are objects with `key`."""
        content = self.take(name, Path.read_bytes, b"")
        # A process that was killed may leave half a line at the end.
        *lines, rest = content.split(b"\n")
        if rest:
            self.missing.append(f"{name} ends within a line.")
        objects = [_object(line) for line in lines]
        records = [line for line in objects if line is not None and key in line]
        if len(records) < len(lines):
            self.missing.append(f"{len(lines) - len(records):,} lines of {name} could not be read.")
        return records

    def _is_command(self) -> bool:
        """Whether `gradwise train` made the run; a Trainer's has no environment.json."""
        try:
            marker = read_marker(self.path)
        except GradwiseError:
            self.missing.append(f"{MARKER}, which marks the folder as gradwise's, is damaged.")
            return True
        if marker is None:
            self.missing.append(f"{MARKER}, which marks the folder as gradwise's, is missing.")
        return marker is None or marker["kind"] == "run"

    def _is_scored(self) -> bool:
        data, metrics = self.section("data"), self.section("metrics")
        return bool(
            data.get("validation") or data.get("target") or metrics.get("tasks") or metrics.get("functions")
        )

    def _check_end(self) -> None:
        last = max((line["step"] for line in self.steps), default=0)
        if self.finished and last < self.finished["step"]:
            self.missing.append(f"metrics.jsonl ends at step {last:,} of {self.finished['step']:,}.")

    def _check_model(self) -> None:
        """Compare the sizes of the saved model's files."""
        try:
            marker = read_marker(self.path) or {}
        except GradwiseError:
            return
        digests = marker.get("digests", {}).get(MODEL, {})
        # By sizes alone, without reading the weights of a large model.
        if digests and (damage := difference(self.path / MODEL, digests, contents=False)):
            self.missing.append(f"The saved model is not as the run left it: {damage}.")


def _object(line: bytes) -> Line | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _mapping(path: Path) -> Line:
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(recipe, dict) or "seed" not in recipe:  # the last key that is written
        raise ValueError("the recipe was cut short")
    return recipe


def _scores(path: Path) -> Line:
    scores = read_json(path)["scores"]
    for score in scores.values():
        _ = float(score["value"]), score["better"]
    return scores
