"""Loss and learning rate over the steps of a run, with what happened on the way."""

import math

from gradwise.report.page.charts import Axes, Line, both, line_chart, stretches
from gradwise.report.page.document import Block, Figure, Paragraph
from gradwise.report.page.files import RunFiles

Points = tuple[list[float], list[float]]


def ends(run: RunFiles) -> tuple[float | None, float | None]:
    """The held-out loss before the first step and that of the final model; None if not measured."""
    steps, values = held_out(run)
    before = values[0] if steps and steps[0] == 0 else None
    score = run.scores.get("held_out_loss")
    after = float(score["value"]) if score else values[-1] if values and run.finished else None
    return before, after


def held_out(run: RunFiles) -> Points:
    """Steps and held-out losses of the evaluations."""
    # By step, since a resumed run may have evaluated at the same step twice.
    loss_by_step = {
        line["step"]: value
        for line in run.metrics
        if isinstance(value := line.get("held_out_loss", line.get("eval_loss")), int | float)
    }
    return list(loss_by_step), list(loss_by_step.values())


def annealing(run: RunFiles) -> tuple[float, float, str] | None:
    """First and last step of the annealing phase, from its events or the recipe."""
    last = max((line["step"] for line in run.steps), default=0)
    events = run.of("anneal")
    if events:
        return events[0]["step"], max(last, events[0]["step"]), "annealing phase"
    share = run.section("anneal").get("last")
    if not isinstance(share, int | float) or not run.finished:
        return None
    return last - math.ceil(share * last), last, "annealing phase"


def blocks(run: RunFiles) -> list[Block]:
    """Loss curves and the learning rate."""
    steps = [line["step"] for line in run.steps]
    evaluations, values = held_out(run)
    if len(steps) < 2 and len(evaluations) < 2:
        return []
    x, y, size = stretches(steps, [line["loss"] for line in run.steps])
    lines = [Line("training", x, y, 6, thin=True), Line("held-out", evaluations, values, 0)]
    events = tuple((event["step"], _event_text(event)) for event in run.of("refresh"))
    axes = Axes("optimizer steps", "loss, nats per token", 320, shade=annealing(run), events=events)
    lines = [line for line in lines if line.x]
    caption = [] if size == 1 else [f"Each point of the training loss is the mean of {size} steps."]
    caption += ["A triangle marks a refresh of the selection."] if events else []
    caption += _best(evaluations, values)
    legend = tuple((line.name, f"c{line.colour}") for line in lines) if len(lines) > 1 else ()
    chart = both(lambda width: line_chart(lines, axes, width))
    content: list[Block] = [Figure(chart, " ".join(caption), legend)]
    rates = [
        (line["step"], line["learning_rate"]) for line in run.steps if line.get("learning_rate") is not None
    ]
    if len(rates) > 1:
        rate = Line("", *stretches(*zip(*rates, strict=True))[:2], 2)
        below = Axes(
            "optimizer steps", "learning rate", 150, shade=axes.shade and (*axes.shade[:2], ""), zero=True
        )
        content.append(Figure(both(lambda width: line_chart([rate], below, width))))
    if not values:
        content.append(Paragraph("The run was not evaluated on held-out data.", "small"))
    return content


def _event_text(event: dict) -> str:
    stayed, selected = event.get("stayed"), event.get("selected")
    if stayed is None or not selected:
        return f"refresh before step {event['step'] + 1}"
    return f"refresh before step {event['step'] + 1}: {selected - stayed:,} of {selected:,} samples replaced"


def _best(steps: list[float], values: list[float]) -> list[str]:
    """A sentence where the held-out loss ends above its lowest value."""
    # 0.02 nats, as `RISE` of `gradwise.report.overfitting`.
    if len(values) < 3 or values[-1] <= min(values) + 0.02:
        return []
    lowest = min(range(len(values)), key=values.__getitem__)
    if not steps[lowest]:
        return []  # training never lowered it, which is no overfitting
    return [
        f"The held-out loss was lowest at step {steps[lowest]:,.0f} ({values[lowest]:.4f}) and ends "
        f"{values[-1] - values[lowest]:.3f} above it: a sign of overfitting."
    ]
