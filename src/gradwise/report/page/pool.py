"""Which samples a run trained on: picks with reasons, the mix of domains, the pool in two dimensions."""

import math
from collections import Counter
from typing import Any

import numpy as np

from gradwise.report.page.charts import (
    COLOURS,
    Axes,
    Cloud,
    Line,
    both,
    line_chart,
    scatter,
    stacked_chart,
)
from gradwise.report.page.document import (
    Block,
    Cell,
    Figure,
    Folded,
    Heading,
    Paragraph,
    Table,
    TableColumn,
    number,
    sample_text,
)
from gradwise.report.page.files import Line as Record
from gradwise.report.page.files import RunFiles

POOL = "plan/pool.parquet"
"""Domains of some samples of the pool, and their places in a plane; see `gradwise.planning.picks`."""

ROWS = 40
"""Picks of one decision that are shown."""

STRETCHES = 48
"""Stretches of the run over which the mix of domains is drawn."""

OTHER = "other domains"

LABELS = {
    "importance": ("importance", 3),
    "covers": ("stands for, samples", 0),
    "copies": ("copies", 0),
    "cosine": ("cosine with the descent direction", 3),
    "stiff_cost": ("stiff cost, of the average", 2),
    "weight": ("weight", 2),
}
"""Columns of picks that are shown, with their headings and decimals, in this order."""


def samples(run: RunFiles, *, text: bool) -> list[Block]:
    """The picks of each decision, with their texts if `text` is set, and the mix of domains."""
    blocks: list[Block] = [*_selection_curves(run), *_mix(run)]
    decisions = _decisions(run)
    for number_, (step, name) in enumerate(decisions):
        picks = run.table(f"plan/picks-{step}.parquet")
        if not picks:
            continue
        table = _table(picks, f"plan/picks-{step}.parquet", text)
        if number_ == 0:
            blocks += [Heading(name), table]
        else:
            blocks.append(Folded(name, blocks=[table]))
    if not decisions and run.of("plan"):
        plan = run.of("plan")[0]
        blocks.append(Paragraph(f"select: {plan.get('select', 'full')} gives no reasons for single samples."))
    return blocks


def _decisions(run: RunFiles) -> list[tuple[int, str]]:
    """Steps at which samples were picked with a reason each, and a title for each decision."""
    pick_steps = run.steps_of("picks")
    plan = next((event for event in run.of("plan") if "coverage" in event), None)
    titles = {
        step: "Selected at the start" if step == 0 else f"Selected before step {step + 1}"
        for step in pick_steps
    }
    if plan is not None:
        titles.setdefault(0, "Selected at the start")
    for event in run.of("refresh"):
        if event.get("selected"):
            titles[event["step"]] = f"Selected again before step {event['step'] + 1:,} (refresh)"
    for event in run.of("anneal"):
        if event["step"] in pick_steps or "stiff_directions" in event:
            titles[event["step"]] = f"Selected for the annealing phase, before step {event['step'] + 1:,}"
    steps = sorted(titles)
    # Of many refreshes the first and the last ones are shown.
    shown = steps if len(steps) <= 6 else [*steps[:3], *steps[-3:]]
    return [(step, titles[step]) for step in shown]


def _table(picks: list[Record], name: str, text: bool) -> Table:
    first = picks[0]
    numbers = [key for key in LABELS if isinstance(first.get(key), int | float)]
    constant = {key for key in ("weight", "copies") if len({pick.get(key) for pick in picks}) == 1}
    numbers = [key for key in numbers if key not in constant]
    texts = text and any(pick.get("text") for pick in picks)
    columns = [
        TableColumn("pick", "number"),
        *([TableColumn("text", "sample")] if texts else []),
        TableColumn("why", "words"),
    ]
    columns += [TableColumn("domain", "short")] if first.get("domain") else []
    columns += [TableColumn(LABELS[key][0], "number") for key in numbers]
    rows = [
        [
            Cell(str(place + 1), place + 1),
            *([Cell(sample_text(pick.get("text") or ""))] if texts else []),
            Cell(_why(pick)),
            *([Cell(str(pick.get("domain")))] if first.get("domain") else []),
            *(number(pick.get(key), LABELS[key][1]) for key in numbers),
        ]
        for place, pick in enumerate(picks[:ROWS])
    ]
    note = (
        f"The first {len(rows):,} of {len(picks):,} picks; all are in {name}."
        if len(picks) > len(rows)
        else f"All {len(picks):,} picks, as in {name}."
    )
    same = [f"{key} {first[key]:g}" for key in sorted(constant) if isinstance(first.get(key), int | float)]
    note += f" The same for all: {', '.join(same)}." if same else ""
    return Table("picks", columns, rows, note)


def _why(pick: Record) -> str:
    why, origin = str(pick.get("why") or ""), pick.get("origin")
    # The number of the pick stands in a column.
    why = why.partition(": ")[2] or why if why.startswith("pick ") else why
    return f"{why} ({origin})" if origin else why


def _selection_curves(run: RunFiles) -> list[Block]:
    """How coverage and agreement of a selection developed, where it was refreshed."""
    events = [event for event in [*run.of("plan"), *run.of("refresh")] if "coverage" in event]
    if len(events) < 2:
        return []
    names = {"coverage": "coverage", "agreement": "agreement", "embedding_agreement": "of embeddings"}
    lines = []
    for colour, (key, name) in enumerate(names.items()):
        points = [(event["step"], event[key]) for event in events if event.get(key) is not None]
        if points:
            x, y = zip(*points, strict=True)
            lines.append(Line(name, x, y, colour))
    axes = Axes("optimizer steps", "share, correlation, cosine", 210)
    caption = (
        "Coverage: share of the candidates that the selection represents, by similarity. Agreement: rank "
        "correlation of propagated and measured importance at a refresh, and cosine of the embeddings."
    )
    legend = tuple((line.name, f"c{line.colour}") for line in lines)
    return [Figure(both(lambda width: line_chart(lines, axes, width)), caption, legend)]


# ---- domains -----------------------------------------------------------------------------------------------


def _domains(run: RunFiles) -> dict[int, str]:
    """Domains by the sample's position, as far as they are known."""
    rows = run.table(POOL) if (run.path / POOL).exists() else []
    for step in sorted(run.steps_of("picks")):
        rows += run.table(f"plan/picks-{step}.parquet")
    return {
        row["index"]: str(row["domain"])
        for row in rows
        if row.get("domain") is not None and row.get("index") is not None
    }


def _names(domains: list[str]) -> list[str]:
    """The most frequent domains, as many as there are colours, and the rest as one."""
    names = [name for name, _ in Counter(domains).most_common()]
    return sorted(names) if len(names) <= COLOURS else [*sorted(names[: COLOURS - 1]), OTHER]


def _mix(run: RunFiles) -> list[Block]:
    """Shares of the domains over the steps of the plan."""
    # A plan of very many epochs drops those that were served: its steps cannot be counted from 0.
    if run.plan is None or run.plan.dropped is not None:
        return []
    domains = _domains(run)
    names = _names(list(domains.values()))
    if len(names) < 2:
        return []
    entries = run.plan.indices[: len(run.plan)]
    # Of the event, since a Trainer's recipe does not have its batch size; rows of packed samples have none.
    batch = next(iter(run.of("plan")), {}).get("batch_size")
    last = max((line["step"] for line in run.steps), default=0)
    per_step = batch if isinstance(batch, int) else max(1, len(entries) // max(1, last))
    steps = -(-len(entries) // per_step)
    count = min(STRETCHES, steps)
    edges = np.linspace(0, steps, count + 1).round().astype(int)
    code = {name: min(place, len(names) - 1) for place, name in enumerate(names)}
    # -1 stands for samples whose domain is not recorded.
    codes = np.array(
        [code.get(domains[int(index)], len(names) - 1) if int(index) in domains else -1 for index in entries]
    )
    shares = np.full((count, len(names)), np.nan)
    for place in range(count):
        stretch_codes = codes[edges[place] * per_step : edges[place + 1] * per_step]
        stretch_codes = stretch_codes[stretch_codes >= 0]
        if len(stretch_codes):
            shares[place] = np.bincount(stretch_codes, minlength=len(names)) / len(stretch_codes)
    share_with_domain = float((codes >= 0).mean())
    caption = "Domains of the samples trained on, in the order of the plan."
    if share_with_domain < 1:
        caption += f" The domain of {share_with_domain:.0%} of them is recorded."
    drawing = both(lambda width: stacked_chart(edges.tolist(), shares, names, "optimizer steps", width))
    return [Figure(drawing, caption, tuple((name, f"c{place}") for place, name in enumerate(names)))]


# ---- the plane ---------------------------------------------------------------------------------------------


def plane(run: RunFiles) -> list[Block]:
    """The pool in two dimensions, coloured by domain, picks on top."""
    if not (run.path / POOL).exists():
        if any("coverage" in event for event in run.of("plan")):
            run.missing.append(f"{POOL} is missing.")
        return []
    rows = [row for row in run.table(POOL) if _placed(row)]
    if not rows:
        return []
    picks = {pick["index"]: pick for pick in _last_picks(run)}
    names = _names([str(row.get("domain") or "all samples") for row in rows])
    clouds = []
    for place, name in enumerate(names):
        cloud_rows = [
            row
            for row in rows
            if str(row.get("domain") or "all samples") == name
            or (name == OTHER and str(row.get("domain")) not in names)
        ]
        tips = [_tip(row, picks) for row in cloud_rows]
        marked = [row["index"] in picks for row in cloud_rows]
        clouds.append(
            Cloud(
                name, [row["x"] for row in cloud_rows], [row["y"] for row in cloud_rows], place, tips, marked
            )
        )
    variance = rows[0].get("variance")
    caption = (
        f"{len(rows):,} samples of the pool at the first scoring, each by the two largest principal "
        "components of its embedding"
    )
    caption += f", which hold {variance:.0%} of the variance" if isinstance(variance, float) else ""
    caption += ". Full colour: selected last." if picks else "."
    legend = tuple((cloud.name, f"c{cloud.colour}") for cloud in clouds) if len(clouds) > 1 else ()
    drawing = both(lambda width: scatter(clouds, "first principal component", "second", width))
    return [Figure(drawing, caption, legend)]


def _placed(row: Record) -> bool:
    return all(isinstance(row.get(key), float) and math.isfinite(row[key]) for key in ("x", "y"))


def _last_picks(run: RunFiles) -> list[Record]:
    """Picks of the last selection before the annealing phase."""
    at = {event["step"] for event in run.of("anneal")}
    steps = [step for step, _ in _decisions(run) if step not in at]
    return run.table(f"plan/picks-{steps[-1]}.parquet") if steps else []


def _tip(row: Record, picks: dict[int, Record]) -> str:
    pick: dict[str, Any] | None = picks.get(row["index"])
    origin = f"sample {row['index']:,}" + (f", {row['domain']}" if row.get("domain") else "")
    return origin if pick is None else f"{origin}: {pick.get('why') or 'selected'}"
