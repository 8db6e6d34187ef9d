"""A comparison's numbers as rows, and rows as text, CSV and Parquet, written with its curves."""

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from gradwise.atomic import parquet_bytes, write_bytes, write_text
from gradwise.report import statistics
from gradwise.report.curves import AXES, loss_curves
from gradwise.report.overfitting import overfitting
from gradwise.report.reading import HELD_OUT_LOSS, ArmPair, Results, RunResult
from gradwise.report.statistics import CLAIM_SEEDS, MIN_SEEDS, TOO_FEW_SEEDS, ArmDifference

Row = dict[str, Any]

REFERENCE = "reference"

WIDTH = 100
"""Columns of text."""

UNITS = {"steps": "optimizer steps", "tokens": "input tokens", "time": "s charged, deciding included"}
"""What each kind of budget is counted in."""


def write_report(results: Results, folder: Path, metric: str, *, draw: bool = True) -> str:
    """Write all of it into `folder` and return the text.

    Args:
        results: what was read of the comparison.
        folder: gets results.csv, runs.csv, both as .parquet, table.txt and loss_by_*.png.
        metric: the first table's.
        draw: draw curves even where they have been drawn.
    """
    text = as_text(results, metric)
    for name, rows in (("results", results_rows(results, metric)), ("runs", runs_rows(results))):
        write_text(folder / f"{name}.csv", as_csv(rows))
        write_bytes(folder / f"{name}.parquet", as_parquet(rows))
    if any(len(run.curve) > 1 for run in results.runs):
        for axis in AXES:
            path = folder / f"loss_by_{axis}.png"
            if draw or not path.exists():
                write_bytes(path, loss_curves(results, axis))
    write_text(folder / "table.txt", text + "\n")
    return text


def results_rows(results: Results, metric: str = HELD_OUT_LOSS) -> list[Row]:
    """Per metric, one row for every arm with its verdict and what it cost, then one for each further pair.

    Args:
        results: of the comparison.
        metric: comes first.
    """
    return [row for name in ordered_metrics(results, metric) for row in _metric_rows(results, name)]


def ordered_metrics(results: Results, first: str) -> list[str]:
    """All metrics, `first` first."""
    return sorted(results.metrics(), key=lambda name: name != first)


def _metric_rows(results: Results, metric: str) -> list[Row]:
    values, better = results.values(metric), results.metrics()[metric]
    pairs = {(pair.arm, pair.against): pair for pair in results.pairs}
    judged = {(one.arm, one.against): one for one in statistics.compare_pairs(values, pairs, better)}
    # Reversed, so that the first of several pairs of an arm stays; the others are those that --pairs added.
    main_pairs = {pair.arm: pair for pair in reversed(results.pairs)}
    first = [(arm, main_pairs.get(arm)) for arm in results.arms]
    further = [(pair.arm, pair) for pair in results.pairs if main_pairs[pair.arm] is not pair]
    return [
        {
            "metric": metric,
            "better": better,
            "arm": arm,
            "seeds": len(values[arm]),
            **_mean_sd(values[arm]),
            **_judged(pair, judged.get((pair.arm, pair.against)) if pair else None),
            **arm_cost(results, arm),
        }
        for arm, pair in [*first, *further]
    ]


def _mean_sd(values: dict[int, float]) -> Row:
    value, sd = statistics.mean_sd(values) if values else (None, None)
    return {"mean": value, "sd": None if sd is None or math.isnan(sd) else sd}


def _judged(pair: ArmPair | None, one: ArmDifference | None) -> Row:
    low, high = one.interval if one is not None and one.interval is not None else (None, None)
    return {
        "against": None if pair is None else pair.against,
        "differs_in": None if pair is None else _listed(pair.differs),
        "pairs": 0 if one is None else one.seeds,
        "difference": None if one is None else one.difference,
        "interval_low": low,
        "interval_high": high,
        "p": None if one is None else one.p,
        "verdict": REFERENCE if pair is None else TOO_FEW_SEEDS if one is None else one.verdict,
    }


def _listed(names: Sequence[str]) -> str:
    *first, last = names or ("",)
    return f"{', '.join(first)} and {last}" if first else last


def arm_cost(results: Results, arm: str) -> Row:
    """What an arm's finished runs cost on average, and how many failed."""
    finished = [run for run in results.of_arm(arm) if run.finished]
    failed = [run for run in results.of_arm(arm) if run.failure is not None]
    memory = [run.memory for run in finished if run.memory is not None]
    return {
        "steps": _mean([run.steps for run in finished]),
        "epochs": _mean([run.epochs for run in finished if run.epochs is not None]),
        "tokens": _mean([run.tokens for run in finished]),
        "seconds": _mean([run.seconds for run in finished]),
        "deciding_seconds": _mean([run.deciding for run in finished]),
        "lowest_held_out_loss": _mean([run.lowest for run in finished if run.lowest is not None]),
        "peak_memory_bytes": max(memory) if memory else None,
        # An arm that could not start has no runs whose failures could be counted.
        "failed": len(results.seeds) if arm in results.failed_arms and not finished else len(failed),
        "over_budget": sum(is_over_budget(results, run) for run in finished),
    }


def is_over_budget(results: Results, run: RunResult) -> bool:
    """Whether a finished run took more than the budget."""
    kind, amount = results.budget["kind"], results.budget["amount"]
    if amount is None:
        return False
    return {"steps": run.steps, "tokens": run.tokens, "time": run.seconds}[kind] > amount


def runs_rows(results: Results) -> list[Row]:
    """One row per run and metric; a run without scores has one row without a metric."""
    rows = []
    for run in results.runs:
        failure = run.failure or results.failed_arms.get(run.arm)
        cost = {
            "finished": run.finished,
            "failure": failure,
            "steps": run.steps,
            "epochs": run.epochs,
            "tokens": run.tokens,
            "seconds": run.seconds,
            "deciding_seconds": run.deciding,
            "lowest_held_out_loss": run.lowest,
            "peak_memory_bytes": run.memory,
        }
        for metric, score in run.scores.items() or [(None, None)]:
            value = (
                {"value": score.value, "better": score.better} if score else {"value": None, "better": None}
            )
            rows.append({"arm": run.arm, "seed": run.seed, "metric": metric, **value, **cost})
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


# ---- as files ----------------------------------------------------------------------------------------------


def as_csv(rows: list[Row]) -> str:
    """Comma-separated, full precision; empty where there is no value. No text is a spreadsheet formula."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_inert(name) for name in rows[0]])
    writer.writerows([_inert(row.get(name)) for name in rows[0]] for row in rows)
    return text.getvalue()


def _inert(value: object) -> Any:
    """Text that would begin a formula, with an apostrophe before it; numbers as they are.

    A carriage return, which Python's writer leaves unquoted, would begin a new row with what follows it.
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r", "\n")
    return f"'{text}" if text.startswith(tuple("=+-@\t\n")) else text


def as_parquet(rows: list[Row]) -> bytes:
    """The same as a Parquet file, with types."""
    import pyarrow

    return parquet_bytes(pyarrow.Table.from_pylist(rows))


# ---- as text -----------------------------------------------------------------------------------------------


def as_text(results: Results, metric: str = HELD_OUT_LOSS) -> str:
    """Everything a reader needs, at most 100 columns wide: a table of verdicts per metric, one of costs, and
    notes."""
    parts = [_heading(results)]
    parts += [_values(results, name) for name in ordered_metrics(results, metric)]
    parts += [_costs(results), "\n".join(_wrapped(note) for note in report_notes(results, metric))]
    return "\n\n".join(part for part in parts if part)


def _heading(results: Results) -> str:
    amount: float | None = results.budget["amount"]
    spent = "its budget"
    if amount is not None:
        spent = f"{amount:,.0f}" if amount >= 100 else f"{amount:g}"
        spent += f" {UNITS[results.budget['kind']]}"
    done = sum(run.finished for run in results.runs)
    headline = f"{results.name}: every run within {spent}; {done} of {len(results.runs)} runs finished."
    return f"{_wrapped(headline)}\n" + _wrapped(
        "Differences are arm minus the one it is compared with, paired by seed; p and 95 % intervals are "
        "corrected for all comparisons of a table (Holm)."
    )


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _values(results: Results, metric: str) -> str:
    """A metric's table of values, and below it that of its comparisons."""
    rows = _metric_rows(results, metric)
    digits = _digits([row["mean"] for row in rows])
    arms = {row["arm"]: row for row in reversed(rows)}
    lowest = metric == HELD_OUT_LOSS
    lines = [
        [
            arm,
            str(arms[arm]["seeds"]),
            _number(arms[arm]["mean"], digits),
            _number(arms[arm]["sd"], digits),
            *([_number(arms[arm]["lowest_held_out_loss"], digits)] if lowest else []),
        ]
        for arm in results.arms
    ]
    head = ["arm", "seeds", "mean", "sd", *(["lowest on the way"] if lowest else [])]
    title = f"{metric} ({rows[0]['better']} is better)"
    table = f"{title}\n{aligned(head, lines, left=(0,))}"
    return f"{table}\n\n{_comparisons(rows, digits)}" if results.pairs else table


def _comparisons(rows: list[Row], digits: int) -> str:
    compared = [row for row in rows if row["against"] is not None]
    lines = [
        [
            row["arm"],
            row["against"],
            str(row["pairs"]),
            _number(row["difference"], digits, sign=True),
            _interval(row, digits),
            _p(row["p"]),
            row["verdict"],
        ]
        for row in compared
    ]
    head = ["arm", "against", "pairs", "difference", "95 % interval", "p", "verdict"]
    title, *table = aligned(head, lines, left=(0, 1, 6)).splitlines()
    notes = [
        [f"  differs in {row['differs_in']}"] if " and " in row["differs_in"] else [] for row in compared
    ]
    return "\n".join(
        [title, *(line for row, note in zip(table, notes, strict=True) for line in (row, *note))]
    )


def _costs(results: Results) -> str:
    head = ["arm", "steps", "epochs", "tokens", "seconds", "deciding", "peak memory", "failed"]
    lines = []
    for arm in results.arms:
        cost = arm_cost(results, arm)
        over = " !" if cost["over_budget"] else ""
        memory = cost["peak_memory_bytes"]
        lines.append(
            [
                arm,
                _count(cost["steps"]),
                _number(cost["epochs"], 1),
                _count(cost["tokens"]),
                (_seconds(cost["seconds"]) + over),
                _seconds(cost["deciding_seconds"]),
                "" if memory is None else f"{memory / 2**30:.2f} GiB",
                str(cost["failed"]) if cost["failed"] else "",
            ]
        )
    title = "cost per run (means; epochs: over the selection; memory: the highest)"
    return f"{title}\n{aligned(head, lines, left=(0,))}"


def report_notes(results: Results, metric: str) -> list[str]:
    """What a reader should know besides the numbers, a sentence each."""
    notes, metrics = list(results.notes), results.metrics()
    if metrics and metric not in metrics:
        notes.append(f"No run has the metric {metric!r}; there are: {', '.join(metrics)}.")
    for arm in results.arms:
        over = [run for run in results.of_arm(arm) if run.finished and is_over_budget(results, run)]
        if over:
            longest = max(run.seconds for run in over)
            notes.append(
                f"! {arm}: {len(over)} runs ended outside the budget; the longest took {longest:,.1f} s"
            )
    notes += _on_samples(results)
    notes += [sentence] if (sentence := overfitting(results)) else []
    notes += _on_seeds(results, metric)
    notes += [f"failed: {arm}: {why}" for arm, why in results.failed_arms.items()]
    notes += [f"failed: {run.arm}, seed {run.seed}: {run.failure}" for run in results.runs if run.failure]
    return notes


def _on_samples(results: Results) -> list[str]:
    """Runs whose held-out loss is a mean over fewer samples than others', which does not compare."""
    counts = {
        (run.arm, run.seed): run.scores[HELD_OUT_LOSS].samples or 0
        for run in results.runs
        if run.finished and HELD_OUT_LOSS in run.scores
    }
    most = max(counts.values(), default=0)
    return [
        f"! {arm}, seed {seed}: {count} of {most} held-out samples have a finite loss, and their mean does "
        "not compare with the others'."
        for (arm, seed), count in counts.items()
        if 0 < count < most
    ]


def _on_seeds(results: Results, metric: str) -> list[str]:
    """What the number of seeds lets nobody say."""
    if not results.metrics():
        return []
    rows = _metric_rows(results, ordered_metrics(results, metric)[0])
    pairs = [row["pairs"] for row in rows if row["verdict"] != REFERENCE]
    notes = []
    if any(count < MIN_SEEDS for count in pairs):
        notes.append(f"A verdict needs at least {MIN_SEEDS} seeds that both arms have finished.")
    if any(MIN_SEEDS <= count < CLAIM_SEEDS for count in pairs):
        notes.append(
            f"Verdicts on fewer than {CLAIM_SEEDS} seeds are preliminary: a claim of a gain needs "
            f"{CLAIM_SEEDS}."
        )
    return notes


def aligned(head: list[str], rows: list[list[str]], left: tuple[int, ...]) -> str:
    """Columns two spaces apart, numbers to the right, those in `left` to the left."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    )


def _digits(values: list[float | None]) -> int:
    """Decimals that give the largest value five figures."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 4 if largest < 10 else max(0, 4 - int(math.log10(largest)))


def _number(value: float | None, digits: int, *, sign: bool = False) -> str:
    return "" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _interval(row: Row, digits: int) -> str:
    if row["interval_low"] is None:
        return ""
    return f"[{row['interval_low']:+.{digits}f}, {row['interval_high']:+.{digits}f}]"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
