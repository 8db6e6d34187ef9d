"""Did arms train too long? What the held-out loss and the epochs over a selection say, in one sentence."""

from statistics import mean

from gradwise.report.reading import HELD_OUT_LOSS, Results, RunResult

RISE = 0.02
"""Nats, on average over seeds, from which a final held-out loss above the lowest one is a rise: 2 % in
perplexity."""

MOST_EPOCHS = 16
"""Epochs over a part of the data from which repeating it adds next to nothing (Muennighoff et al. 2023,
arXiv 2305.16264)."""


def overfitting(results: Results) -> str | None:
    """A sentence that names the arms that overfit or repeat a small selection many times, if any does."""
    findings = []
    for arm in results.arms:
        runs = [run for run in results.of_arm(arm) if run.finished]
        if runs and (signs := [*_risen(runs), *_repeated(runs)]):
            findings.append(f"{arm} ({', '.join(signs)})")
    if not findings:
        return None
    return (
        f"Overfitting: {'; '.join(findings)}. Differences at this length are also differences in "
        "overfitting; give a smaller budget or a larger selection."
    )


def _risen(runs: list[RunResult]) -> list[str]:
    """The rise of the held-out loss after its lowest value, if that was reached by training."""
    rises = [
        run.scores[HELD_OUT_LOSS].value - run.lowest
        for run in runs
        if HELD_OUT_LOSS in run.scores and run.lowest is not None and _fell(run)
    ]
    rise = mean(rises) if rises else 0.0
    return [f"the held-out loss ends {rise:.2f} above its lowest"] if rise > RISE else []


def _fell(run: RunResult) -> bool:
    """Whether training lowered the held-out loss at first; if it never did, overfitting is not the cause."""
    return run.lowest is not None and any(point.step and point.loss <= run.lowest for point in run.curve)


def _repeated(runs: list[RunResult]) -> list[str]:
    parts = [run for run in runs if run.epochs is not None and run.share is not None and run.share < 1]
    most = max(parts, key=lambda run: run.epochs or 0.0, default=None)
    if most is None or (most.epochs or 0.0) < MOST_EPOCHS:
        return []
    return [f"{most.epochs:.0f} epochs over {most.share:.0%} of the data"]
