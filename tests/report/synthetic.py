"""A comparison's folder without a single run: the files that a report reads, written by hand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


def jsonl(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@dataclass
class Folder:
    """Writes runs as `gradwise train` does, and comparison.yaml on top."""

    path: Path

    def comparison(self, arms: Sequence[str] | Mapping[str, str], seeds: int = 3, **changes: Any) -> Path:
        """Write comparison.yaml, of arms by name or with what they were made from; returns the folder."""
        specs = arms if isinstance(arms, Mapping) else dict(zip(arms, arms, strict=True))
        contents = {
            "arms": {arm: {"spec": spec, "changes": {}} for arm, spec in specs.items()},
            "seeds": list(range(seeds)),
            "reference": next(iter(arms)),
            "budget": {"kind": "time", "amount": 20.0, "margin": 0.05},
            "steps": dict.fromkeys(arms, 4),
            "failed": {},
            "recipe": {},
            "calibration": {},
            "data": {},
            "notes": [],
        }
        (self.path / "comparison.yaml").write_text(yaml.safe_dump(contents | changes, sort_keys=False))
        return self.path

    def run(
        self,
        arm: str,
        seed: int,
        loss: float,
        *,
        deciding: float = 0.0,
        step: float = 1.0,
        steps: int = 4,
        finished: bool = True,
        rise: float = 0.0,
        epochs: float = 2.0,
        selected: int = 20,
        scores: dict[str, Any] | None = None,
    ) -> Path:
        """A run whose held-out loss falls to `loss` in `steps` steps of `step` seconds and 10 tokens, if it
        does not end `rise` above the loss before; over `epochs` epochs of `selected` samples of 20."""
        folder = self.path / "runs" / arm / f"seed-{seed}"
        folder.mkdir(parents=True)
        metrics: list[dict[str, Any]] = [{"step": 0, "eval_loss": loss + 1, "seconds": deciding}]
        for number in range(1, steps + 1):
            seconds = round(deciding + number * step, 3)
            along = {"step": number, "seconds": seconds, "epoch": epochs * number / steps}
            metrics.append(along | {"loss": loss, "input_tokens": 10})
            low = loss - rise if number == steps - 1 and rise else loss + 1 - number / steps
            metrics.append(along | {"eval_loss": low})
        jsonl(folder / "metrics.jsonl", metrics)
        plan = {"event": "plan", "step": 0, "seconds": deciding, "selected": selected, "pool": 20}
        events: list[dict[str, Any]] = [plan]
        events += [{"event": "resume", "step": 2, "seconds": 77.0}]
        if finished:
            total = deciding + steps * step
            events += [{"event": "finished", "step": steps, "seconds": total, "peak_memory": 3 * 2**29}]
            (folder / "model").mkdir()
            known = {"held_out_loss": {"value": loss, "better": "lower", "samples": 5}} | (scores or {})
            (folder / "scores.json").write_text(json.dumps({"scores": known, "seconds": 0.5}))
        jsonl(folder / "events.jsonl", events)
        return folder


def section(page: str, name: str) -> str:
    """A part of a page."""
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]
