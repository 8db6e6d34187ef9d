"""The page of a comparison: verdicts with their intervals, curves of the arms, costs, notes."""

import shlex
from pathlib import Path

import yaml

from gradwise.console import duration
from gradwise.report.curves import mean_curve
from gradwise.report.page.charts import (
    COLOURS,
    Axes,
    Bar,
    Interval,
    Line,
    bar_chart,
    both,
    forest,
    line_chart,
)
from gradwise.report.page.document import (
    Block,
    Cell,
    Command,
    Figure,
    Folded,
    Heading,
    Notes,
    Page,
    Paragraph,
    Section,
    Table,
    TableColumn,
    number,
)
from gradwise.report.reading import HELD_OUT_LOSS, Results, read_results
from gradwise.report.statistics import BETTER, NO_DIFFERENCE, PRELIMINARY, WORSE
from gradwise.report.tables import (
    REFERENCE,
    UNITS,
    Row,
    ordered_metrics,
    report_notes,
    results_rows,
    runs_rows,
)

LOOKS = {BETTER: "good", WORSE: "bad"}
"""Classes of verdicts."""


def comparison_page(path: Path, metric: str = HELD_OUT_LOSS) -> Page:
    """The page about a comparison.

    Args:
        path: its folder.
        metric: comes first.

    Raises:
        RecipeError: there is no comparison, or its comparison.yaml is damaged.
    """
    results = read_results(path)
    rows = results_rows(results, metric)
    sections = [
        Section("verdicts", "Verdicts", _verdicts(results, rows, metric)),
        Section("curves", "Loss", _curves(results)),
        Section("costs", "Costs", _costs(results, rows)),
        Section("runs", "All runs", _runs(results)),
        Section("notes", "Notes", _notes(results, metric)),
        Section("repeat", "Repeat it", _repeat(path, results)),
    ]
    failures = [f"{run.arm}, seed {run.seed}: {run.failure}" for run in results.runs if run.failure]
    failures += [f"{arm}: {why}" for arm, why in results.failed_arms.items()]
    shown = [section for section in sections if section.blocks]
    return Page(
        "Comparison",
        results.name,
        _lead(results, rows),
        shown,
        failures,
        "Not every run could be finished or read.",
    )


def _lead(results: Results, rows: list[Row]) -> str:
    done = sum(run.finished for run in results.runs)
    amount = results.budget["amount"]
    budget = "the same budget" if amount is None else f"{amount:,.6g} {UNITS.get(results.budget['kind'], '')}"
    sentence = (
        f"{len(results.arms)} arms over {len(results.seeds)} seeds, each run within {budget}; "
        f"{done} of {len(results.runs)} runs finished. "
    )
    main = (
        [row for row in rows if row["metric"] == rows[0]["metric"] and row["verdict"] != REFERENCE]
        if rows
        else []
    )
    groups = {
        verdict: [
            f"{row['arm']} (against {row['against']}{_preliminary(row['verdict'])})"
            for row in main
            if row["verdict"].startswith(verdict)
        ]
        for verdict in (BETTER, WORSE)
    }
    findings = [f"{verdict.capitalize()}: {', '.join(names)}" for verdict, names in groups.items() if names]
    if main and not findings:
        judged = any(row["verdict"].startswith(NO_DIFFERENCE) for row in main)
        findings = [
            "No arm differs visibly from what it is compared with"
            if judged
            else "Too few seeds for a verdict"
        ]
    return sentence + (f"{'. '.join(findings)}." if findings else "")


def _preliminary(verdict: str) -> str:
    return ", preliminary" if verdict.endswith(PRELIMINARY) else ""


# ---- verdicts ----------------------------------------------------------------------------------------------


def _verdicts(results: Results, rows: list[Row], metric: str) -> list[Block]:
    blocks: list[Block] = []
    for name in ordered_metrics(results, metric):
        metric_rows = [row for row in rows if row["metric"] == name]
        part = _metric(metric_rows, name)
        blocks += part if not blocks or len(results.metrics()) <= 4 else [Folded(name, blocks=part)]
    if not blocks:
        return [Paragraph("No run has finished yet, so there is nothing to compare.")]
    return [
        *blocks,
        Paragraph(
            "Differences are arm minus the one it is compared with, paired by seed. p and 95 % intervals are "
            "corrected for all comparisons of a table (Holm).",
            "small",
        ),
    ]


def _metric(rows: list[Row], name: str) -> list[Block]:
    unit = ", nats per token" if name.startswith(HELD_OUT_LOSS) else ""
    better = rows[0]["better"]
    compared = [row for row in rows if row["difference"] is not None]
    blocks: list[Block] = [Heading(f"{name}{unit} ({better} is better)")]
    if compared:
        intervals = [
            Interval(
                f"{row['arm']} against {row['against']}",
                row["difference"],
                row["interval_low"],
                row["interval_high"],
                LOOKS.get(_word(row["verdict"]), "quiet"),
                f"{row['difference']:+.4f}, {row['verdict'].removesuffix(PRELIMINARY)}",
            )
            for row in compared
        ]
        side = "Left" if better == "lower" else "Right"
        caption = f"{side} of zero the arm is better. Bars: corrected 95 % intervals."
        drawing = both(lambda width: forest(intervals, f"difference{unit}", width))
        blocks.append(Figure(drawing, caption))
    numbers = ("seeds", "mean", "sd", "difference", "low", "high", "p")
    columns = [
        *(TableColumn(each, "short") for each in ("arm", "against")),
        *(TableColumn(each, "number") for each in numbers),
        TableColumn("verdict", "short"),
    ]
    cells = [
        [
            Cell(row["arm"]),
            Cell(row["against"] or ""),
            number(row["pairs"] or row["seeds"], 0),
            number(row["mean"]),
            number(row["sd"]),
            number(row["difference"], sign=True),
            number(row["interval_low"], sign=True),
            number(row["interval_high"], sign=True),
            number(row["p"], 3),
            Cell(row["verdict"], look=_word(row["verdict"])),
        ]
        for row in rows
    ]
    return [*blocks, Table(f"verdicts on {name}", columns, cells)]


def _word(verdict: str) -> str:
    return next((word for word in LOOKS if verdict.startswith(word)), "short")


# ---- curves and costs --------------------------------------------------------------------------------------


def _curves(results: Results) -> list[Block]:
    """Held-out loss by steps and by charged seconds."""
    blocks: list[Block] = []
    for axis, label in (("steps", "optimizer steps"), ("seconds", "seconds charged, deciding included")):
        lines = []
        for place, arm in enumerate(results.arms):
            curves = [run.curve for run in results.of_arm(arm) if run.finished and len(run.curve) > 1]
            if not curves:
                continue
            x, mean, spread = mean_curve(curves, axis)  # type: ignore[arg-type]
            band = ((mean - spread).tolist(), (mean + spread).tolist()) if len(curves) > 1 else None
            lines.append(Line(arm, x.tolist(), mean.tolist(), place, band=band))
        if lines:
            axes = Axes(label, "held-out loss, nats per token", 300)
            caption = "Mean over seeds; the band is one standard deviation." if not blocks else ""
            legend = tuple((line.name, f"c{line.colour % COLOURS}") for line in lines)
            drawing = both(lambda width, lines=lines, axes=axes: line_chart(lines, axes, width))
            blocks.append(Figure(drawing, caption, legend))
    return blocks


def _costs(results: Results, rows: list[Row]) -> list[Block]:
    costs = list({row["arm"]: row for row in reversed(rows)}.values())[::-1]
    if not costs:
        return []
    bars = [
        Bar(row["arm"], row["seconds"], results.arms.index(row["arm"]), _spent(row))
        for row in costs
        if row["seconds"]
    ]
    names = ("steps", "epochs", "input tokens", "seconds", "deciding, s", "peak memory, GiB", "failed")
    cells = [
        [
            Cell(row["arm"]),
            number(row["steps"], 0),
            number(row["epochs"], 1),
            number(row["tokens"], 0),
            number(row["seconds"], 1),
            number(row["deciding_seconds"], 1),
            number(None if row["peak_memory_bytes"] is None else row["peak_memory_bytes"] / 2**30, 2),
            number(row["failed"], 0),
        ]
        for row in costs
    ]
    columns = [TableColumn("arm", "short"), *(TableColumn(name, "number") for name in names)]
    blocks: list[Block] = []
    if bars:
        blocks.append(Figure(both(lambda width: bar_chart(bars, "seconds per run, mean", width))))
    note = "Means over the finished runs; memory: the highest. Epochs count the selection."
    return [*blocks, Table("costs", columns, cells, note)]


def _spent(row: Row) -> str:
    return f"{duration(row['seconds'], 1)}, {duration(row['deciding_seconds'] or 0.0, 1)} deciding"


def _runs(results: Results) -> list[Block]:
    looks = {"arm": "short", "metric": "short", "failure": "words"}
    names = ("arm", "seed", "metric", "value", "steps", "seconds", "failure")
    columns = [TableColumn(name, looks.get(name, "number")) for name in names]
    cells = [
        [
            Cell(row["arm"]),
            number(row["seed"], 0),
            Cell(row["metric"] or ""),
            number(row["value"]),
            number(row["steps"], 0),
            number(row["seconds"], 1),
            Cell(row["failure"] or ("" if row["finished"] else "not finished")),
        ]
        for row in runs_rows(results)
    ]
    return [Table("runs", columns, cells)] if cells else []


def _notes(results: Results, metric: str) -> list[Block]:
    notes = [note for note in report_notes(results, metric) if not note.startswith("failed: ")]
    return [Notes(notes)] if notes else []


def _repeat(path: Path, results: Results) -> list[Block]:
    text = (path / "comparison.yaml").read_text(encoding="utf-8", errors="replace")
    contents = yaml.safe_load(text)
    specs = {name: contents["arms"][name]["spec"] for name in results.arms}
    kind, amount = results.budget["kind"], results.budget["amount"]
    pairs = [tuple(pair) for pair in contents.get("requested_pairs") or []]
    others = [name for name in results.arms if name != results.reference]
    # A reference that was asked for is compared with every arm; the default one is not.
    is_asked = bool(others) and all((name, results.reference) in pairs for name in others)
    if is_asked:
        pairs = [pair for pair in pairs if pair[1] != results.reference]
    exact = amount if amount is None or not float(amount).is_integer() else int(amount)
    options = {
        "arms": ",".join(f"{name}={spec}" if name != spec else name for name, spec in specs.items()),
        "seeds": ",".join(map(str, results.seeds)) + ("," if len(results.seeds) == 1 else ""),
        "budget": kind if exact is None else f"{kind}={exact!r}",
        "fraction": contents.get("fraction"),
        "reference": results.reference if is_asked else None,
        "pairs": ",".join(":".join(pair) for pair in pairs),
    }
    flags = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value]
    command = " ".join(["gradwise compare RECIPE.yaml", *flags, "--out NEW"])
    return [
        Paragraph(
            "The recipe is in comparison.yaml. A page about one of the runs: "
            f"gradwise report {path.resolve().name}/runs/ARM/seed-N."
        ),
        Command(command),
        Folded("comparison.yaml: the recipe, the arms, the budget", text),
    ]
