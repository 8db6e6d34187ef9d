"""The page of one run: a section for each thing that its directory holds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from gradwise.console import duration
from gradwise.errors import RecipeError
from gradwise.report.page import decisions, losses, pool
from gradwise.report.page.document import (
    Block,
    Command,
    Fact,
    Facts,
    Folded,
    Notes,
    Page,
    Paragraph,
    Section,
)
from gradwise.report.page.files import RunFiles
from gradwise.report.reading import deciding_seconds
from gradwise.text import one_line

T = TypeVar("T")

MOST_EVENTS = 2000
"""Events that a page lists: of more, the first and the last."""

HOLDS = ("metrics.jsonl", "events.jsonl", "environment.json")
"""Files by any of which a run directory is recognised."""


def run_page(path: Path, *, text: bool = True) -> Page:
    """The page about a run directory, with texts of samples if `text` is set. Raises RecipeError without a
    run."""
    if not any((path / name).is_file() for name in HOLDS):
        raise RecipeError(f"{path} holds no run and no comparison (none of {', '.join(HOLDS)}).")
    run = RunFiles.read(path)
    sections = [
        Section(name, title, _guarded(run, f"The section '{title}'", make, []))
        for name, title, make in _sections(text)
    ]
    shown = [section for section in sections if section.blocks]
    summary = _guarded(run, "The summary", lead, f"A run in {path.resolve().name}.")
    return Page("Training run", path.resolve().name, summary, shown, list(dict.fromkeys(run.missing)))


def _sections(text: bool) -> list[tuple[str, str, Callable[[RunFiles], list[Block]]]]:
    """Name, title and content of each section."""
    return [
        ("run", "Run", _what_was_run),
        ("loss", "Loss", losses.blocks),
        ("samples", "Which samples", partial(pool.samples, text=text)),
        ("pool", "The pool", pool.plane),
        ("order", "In which order", decisions.order),
        ("layers", "Through which layers", decisions.layers),
        ("annealing", "At the end", decisions.spectrum),
        ("time", "Time and memory", decisions.time),
        ("notes", "Warnings and events", _notes),
    ]


def _guarded(run: RunFiles, what: str, make: Callable[[RunFiles], T], instead: T) -> T:
    """The result of `make`, or `instead` where the files parse but hold something unexpected."""
    try:
        return make(run)
    except Exception as error:  # an edited file may hold anything
        run.missing.append(
            f"{what} was left out: a value in the record is not as expected ({one_line(error, 120)})."
        )
        return instead


def lead(run: RunFiles) -> str:
    """What was trained and how the run ended, in two or three sentences."""
    plan = next(iter(run.of("plan")), {})
    name = Path(
        str(run.section("model").get("name") or run.environment.get("model", {}).get("name") or "A model")
    ).name
    last = max((line["step"] for line in run.steps), default=0)
    words = [f"{name} was trained for {last:,} steps"]
    if plan.get("selected") and plan.get("pool"):
        words.append(f"on {plan['selected']:,} of {plan['pool']:,} samples (select: {plan.get('select')})")
    sentence = " ".join(words)
    more = [
        f"{section}: {run.section(section)['method']}"
        for section in ("order", "layers", "anneal")
        if run.section(section).get("method")
    ]
    if more:
        sentence += f", with {', '.join(more)}"
    before, after = losses.ends(run)
    if before is not None and after is not None:
        verb = "fell" if after < before else "rose"
        sentence += f". The held-out loss {verb} from {before:.4f} to {after:.4f} nats per token"
    return sentence + (". The run is not finished." if not run.finished else ".")


def _what_was_run(run: RunFiles) -> list[Block]:
    facts = _guarded(run, "A key number", _facts, [])
    blocks: list[Block] = [Facts(facts)] if facts else []
    if run.section("model"):  # a recipe given to a Trainer names neither model nor data
        repeated = "The recipe in this folder repeats the run, with everything measured in it:"
        blocks.append(Paragraph(repeated))
        blocks.append(Command(f"gradwise train {run.path.resolve().name}/recipe.yaml --out NEW_FOLDER"))
    if run.recipe:
        text = (run.path / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
        blocks.append(Folded("The recipe, every setting", text))
    if run.environment:
        blocks.append(Folded("Versions, machine, data", "\n".join(_environment(run))))
    return blocks


def _facts(run: RunFiles) -> list[Fact]:
    facts = []
    before, after = losses.ends(run)
    if after is not None:
        change = "" if before is None else f"{after - before:+.4f} from {before:.4f} before"
        facts.append(Fact("held-out loss, nats per token", f"{after:.4f}", change))
    elif run.steps:
        facts.append(Fact("training loss, last step", f"{run.steps[-1]['loss']:.4f}", "nats per token"))
    for name, score in run.scores.items():
        if not name.startswith("held_out_loss"):
            facts.append(Fact(name, f"{score['value']:.4f}", f"{score['better']} is better"))
    if run.steps:
        tokens = sum(line.get("input_tokens") or 0 for line in run.steps)
        facts.append(Fact("optimizer steps", f"{run.steps[-1]['step']:,}", f"{tokens:,} input tokens"))
    plan = next(iter(run.of("plan")), {})
    if plan.get("selected") and plan.get("pool"):
        facts.append(Fact("samples selected", f"{plan['selected']:,}", f"of {plan['pool']:,}"))
    end = run.finished
    if end:
        deciding = deciding_seconds(run.events)
        facts.append(Fact("time", duration(end["seconds"], 1), f"{duration(deciding, 1)} of it deciding"))
        if end.get("peak_memory"):
            facts.append(
                Fact("peak memory", f"{end['peak_memory'] / 2**30:.2f} GiB", "of the process or device")
            )
        if end.get("trainable_parameters") and end.get("total_parameters"):
            share = end["trainable_parameters"] / end["total_parameters"]
            facts.append(
                Fact(
                    "parameters updated at a time",
                    f"{share:.0%}",
                    f"of {end['total_parameters'] / 1e6:,.1f} million",
                )
            )
    return facts


def _environment(run: RunFiles) -> list[str]:
    """Versions, machine and data, a line each."""
    environment = run.environment
    lines = [f"{name} {value}" for name, value in _items(environment, "versions")]
    lines += [f"{name}: {value}" for name, value in _items(environment, "machine")]
    lines.append(f"git revision: {environment.get('git_revision')}")
    if isinstance(environment.get("command"), list):
        lines.append(f"command: {' '.join(map(str, environment['command']))}")
    data = environment.get("data")
    lines += [
        f"data, {name}: {value}"
        for name, value in _items({"data": data}, "data")
        if not isinstance(value, dict)
    ]
    lines += [
        f"data, {name}: {value}"
        for name, value in _items(data if isinstance(data, dict) else {}, "report")
        if not isinstance(value, dict | list)
    ]
    return lines


def _items(mapping: dict, name: str) -> list[tuple[str, object]]:
    section = mapping.get(name)
    return list(section.items()) if isinstance(section, dict) else []


# ---- warnings and events -----------------------------------------------------------------------------------


def _notes(run: RunFiles) -> list[Block]:
    notes = [*_warnings(run)]
    rows = [
        f"step {event.get('step', 0):,}: {event['event']}, {event.get('seconds') or 0:,.2f} s"
        for event in run.events
    ]
    blocks: list[Block] = [Notes(notes)] if notes else []
    if not notes and run.events:
        blocks.append(Paragraph("Nothing in the record asks for attention."))
    if rows:
        title, most = f"All {len(rows):,} events", MOST_EVENTS // 2
        if len(rows) > MOST_EVENTS:
            title = f"The first and the last {most:,} of {len(rows):,} events"
            rows = [*rows[:most], "...", *rows[-most:]]
        blocks.append(Folded(title, "\n".join(rows)))
    return blocks


def _warnings(run: RunFiles) -> list[str]:
    """Sentences on what a reader should know, from data report and events."""
    data = run.environment.get("data")
    report = data.get("report", {}) if isinstance(data, dict) else {}
    wording = {
        "cut": "records were cut at max_length",
        "empty": "records have no token to learn and were left out",
        "duplicate": "records were duplicates",
        "unreadable": "records could not be read",
    }
    notes = [f"{report[name]:,} {words}." for name, words in wording.items() if report.get(name)]
    notes += [str(note) for note in report.get("notes") or []]
    resumed = run.of("resume")
    if resumed:
        notes.append(
            f"The run was resumed {len(resumed)} times, at step "
            f"{', '.join(str(event['step']) for event in resumed)}."
        )
    for event in run.events:
        if event.get("set_aside"):
            notes.append(
                f"{event['set_aside']:,} samples could not be scored before step {event['step'] + 1:,} and "
                "were set aside."
            )
        if event.get("outlier_count"):
            notes.append(
                f"{event['outlier_count']:,} samples had outlying importance before step "
                f"{event['step'] + 1:,}, which was limited."
            )
        if event.get("unmeasured"):
            notes.append(str(event["unmeasured"]))
        if event["event"] == "early_stop":
            notes.append(f"Training stopped early at step {event['step']:,}.")
        if event["event"] == "unpacked":
            notes.append(f"Samples were not packed: {event.get('why')}.")
    if not run.finished:
        notes.append(
            "The run has no `finished` event: it is in progress, was stopped, or its record was cut."
        )
    return list(dict.fromkeys(notes))
