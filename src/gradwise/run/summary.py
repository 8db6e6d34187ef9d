"""A finished run in a few lines: what was trained, its cost, its losses."""

import math
from typing import Any

from gradwise.atomic import size_text
from gradwise.methods.grace.pick import random_picks
from gradwise.report.reading import charged, deciding_seconds, expected_shares, measured_memory
from gradwise.run.directory import RunDirectory
from gradwise.stored import damaged


def summary(run: RunDirectory) -> str:
    """A small table from the run directory alone: losses, trained parameters, memory, time. Raises
    CheckpointError if one of its files is damaged."""
    metrics, events = run.metrics(), run.events()
    with damaged(run.path):
        return _table(run, metrics, events)


def _table(run: RunDirectory, metrics: list[dict[str, Any]], events: list[dict[str, Any]]) -> str:
    ends = [event for event in events if event["event"] == "finished"]
    if not ends or not metrics:
        raise ValueError(f"{run.metrics_file.name} or {run.events_file.name} was cut short")
    finished = ends[-1]
    losses = _losses(metrics, run.scores().get("held_out_loss"))
    shown = {"held_out_loss"} if any("eval_loss" in line for line in metrics) else set[str]()
    rows = [
        *losses,
        *(_score(name, score) for name, score in run.scores().items() if name not in shown),
        ("steps", f"{finished['step']:,}"),
        (
            "parameters updated at a time",
            _share(finished["trainable_parameters"], finished["total_parameters"]),
        ),
        ("peak memory", f"{finished['peak_memory'] / 2**30:.2f} GiB"),
        *_by_part(events),
        ("time", f"{finished['seconds']:,.0f} s ({deciding_seconds(events):,.1f} s of it deciding)"),
        *_against_forecast(events, finished["seconds"]),
        *_at_random(events),
        ("model", str(run.model)),
        ("record", str(run.path)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _losses(metrics: list[dict[str, Any]], score: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Rows on the loss; `score` is that of the saved model, which may be a better one than the last."""
    held_out = [line for line in metrics if "eval_loss" in line]
    if held_out:
        # Without `eval_on_start` nothing is known of the time before.
        before, after = (line.get("held_out_loss", line["eval_loss"]) for line in (held_out[0], held_out[-1]))
        losses = [("before", before)] * (held_out[0]["step"] == 0)
        losses += [("after", score["value"] if score else after)]
        over = f" over {score['samples']:,} samples" if score and score["samples"] else ""
        return [
            (f"held-out loss {when}", "not finite" if loss is None else f"{loss:.4f} nats per token{over}")
            for when, loss in losses
        ]
    training = [math.nan if line["loss"] is None else line["loss"] for line in metrics if "loss" in line]
    # The loss of a single step is noisy, so means over a tenth of the steps are shown.
    tenth = max(1, len(training) // 10)
    return [
        (f"training loss at {when}", f"{mean:.4f} nats per token" if math.isfinite(mean) else "not finite")
        for when, mean in (("first", sum(training[:tenth]) / tenth), ("last", sum(training[-tenth:]) / tenth))
    ]


def _score(name: str, score: dict[str, Any]) -> tuple[str, str]:
    taken = f" over {score['samples']:,} samples" if score["samples"] else ""
    return name, f"{score['value']:.4f}{taken}; {score['better']} is better"


def _share(part: int, whole: int) -> str:
    return f"{part / 1e6:,.2f} M of {whole / 1e6:,.2f} M ({part / whole:.0%})"


def _by_part(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The peak of all tensors, and the two largest parts of it."""
    phases = measured_memory(events)
    if not phases:
        return []
    parts = max(phases.values(), key=lambda each: sum(each.values()))
    largest = sorted(parts, key=lambda part: -parts[part])[:2]
    figures = ", ".join(f"{part} {size_text(parts[part])}" for part in largest)
    return [("tensors at the peak", f"{size_text(sum(parts.values()))}: {figures}")]


def _at_random(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Picks with which GRACE filled its budget because it had not scored enough samples to choose them."""
    planned = next((event for event in events if event["event"] == "plan"), {})
    note = random_picks(planned, planned.get("selected", 0))
    return (
        [("grace's picks", f"{note}; more select.overhead or candidates choose more of them")] if note else []
    )


def _against_forecast(events: list[dict[str, Any]], seconds: float) -> list[tuple[str, str]]:
    """Forecast and measured cost of the decisions, as shares of the training time."""
    spent, training = charged(events), seconds - deciding_seconds(events)
    expected = expected_shares(events)
    if not expected or training <= 0:
        return []
    figures = [
        f"{name} {spent[name] / training:.0%}, forecast {share:.0%}" for name, share in expected.items()
    ]
    if measuring := spent["measuring speeds"]:
        figures.append(f"measuring speeds {measuring / training:.0%}")
    return [("deciding over training", "; ".join(figures))]
