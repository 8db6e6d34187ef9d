"""Memory of a run by part, as it was measured at a few of its steps, against the forecast."""

from gradwise.atomic import size_text
from gradwise.report.page.charts import Axes, Bar, Line, bar_chart, both, line_chart
from gradwise.report.page.document import Block, Figure, Heading, Paragraph
from gradwise.report.page.files import RunFiles
from gradwise.report.reading import measured_memory
from gradwise.training.record_names import GRADIENTS, PARTS, STATE, UPDATE

PART_COLOURS = {GRADIENTS: 2, STATE: 3}
"""Parts that change with the layers drawn, and their colours."""


def memory(run: RunFiles) -> list[Block]:
    """Bytes of each part at the peak, and of those that change over the run."""
    phases = measured_memory(run.events)
    if not phases:
        return []
    peak = max(phases, key=lambda name: sum(phases[name].values()))
    parts, total = phases[peak], sum(phases[peak].values())
    unit, size = _unit_of(total)
    forecast = next((event["forecast"] for event in run.of("memory") if "forecast" in event), {})
    expected = forecast.get(peak, {})
    bytes_by_part = {part: parts.get(part, 0) for part in PARTS} | {"peak": total}
    expected_bytes = expected | ({"peak": sum(expected.values())} if expected else {})
    bars = [
        Bar(
            name,
            held / size,
            place,
            f"{size_text(held)} ({held / total:.0%})",
            expected_bytes.get(name, 0) / size if expected else None,
        )
        for place, (name, held) in enumerate(bytes_by_part.items())
    ]
    totals = ", ".join(
        f"{name} {size_text(sum(phase_parts.values()))}" for name, phase_parts in phases.items()
    )
    words = f"Tensors took at most {size_text(total)}, in the {peak} phase ({totals})."
    host = max((event.get("host") or 0 for event in run.of("memory")), default=0)
    words += f" Host memory held {size_text(host)} of optimizer state." if host else ""
    caption = "Dark marks: the forecast, for rows of full length. " if expected else ""
    caption += "Activations and temporary buffers are those of one step." if len(phases) > 1 else ""
    return [
        Heading("Memory by part"),
        Paragraph(words),
        Figure(both(lambda width: bar_chart(bars, unit, width)), caption.strip()),
        *_development(run),
    ]


def _development(run: RunFiles) -> list[Block]:
    """Gradients and optimizer state over the steps, where layers are drawn."""
    measurements = [(event["step"], event["phases"][UPDATE]) for event in run.of("memory")]
    if len({(parts[GRADIENTS], parts[STATE]) for _, parts in measurements}) < 2:
        return []
    unit, size = _unit_of(max(parts[name] for _, parts in measurements for name in PART_COLOURS))
    steps = [step for step, _ in measurements]
    lines = [
        Line(name, steps, [parts[name] / size for _, parts in measurements], colour)
        for name, colour in PART_COLOURS.items()
    ]
    axes = Axes("optimizer steps", unit, 200, zero=True)
    return [
        Figure(both(lambda width: line_chart(lines, axes, width)), "Parts that change as layers are drawn.")
    ]


def _unit_of(size: int) -> tuple[str, int]:
    """The unit that a chart of sizes up to `size` has, and its bytes."""
    name, power = next((unit for unit in (("GiB", 30), ("MiB", 20)) if size >= 2 ** unit[1]), ("KiB", 10))
    return name, 2**power
