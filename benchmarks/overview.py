"""Draws docs/verdicts.svg, the README's figure: what each method gained or lost in held-out loss.

    python -m benchmarks.overview        # also part of `python -m benchmarks.results`

Every row is a claim of the results index, so the figure shows no number that the index does not have.
"""

import re
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.common.figure_style import BLUE, GREY, VERMILION
from benchmarks.common.folders import RESULTS, ROOT
from benchmarks.common.tables import Claim
from gradwise.report.statistics import PRELIMINARY

FIGURE = ROOT / "docs" / "verdicts.svg"

ROWS = {
    "select: which samples?": {
        "GRACE, 10 % of a dirty pool, against a random 10 %, equal time": (
            "GRACE picks 10 % of a dirty pool, against a random one of equal size, equal time"
        ),
        "GRACE, 30 % of a dirty pool, against a random 30 %, equal time": (
            "GRACE picks 30 % of a dirty pool, against a random one of equal size, equal time"
        ),
        "GRACE, 10 % of a dirty pool, against all data, equal time": (
            "GRACE picks 10 % of a dirty pool, against all data, equal time"
        ),
        "trial, GRACE or all data, towards a target (SVAMP), against all data, equal time": (
            "A trial's picks towards a target against all of the data, equal time: SVAMP"
        ),
        "trial, GRACE or all data, towards a target (PIQA), against all data, equal time": (
            "A trial's picks towards a target against all of the data, equal time: PIQA"
        ),
    },
    "order: in which order?": {
        "balanced (baseline), fine-tuning, against a shuffle": (
            "stories260K's fine-tuning: balanced order against a shuffle, equal steps"
        ),
        "D³, fine-tuning, against a shuffle": "stories260K's fine-tuning: D³ against a shuffle, equal steps",
        "D³ in batches of one domain, fine-tuning, against a shuffle": (
            "stories260K's fine-tuning: D³ in batches of one domain against a shuffle, equal steps"
        ),
        "D³ (whole batches, no window), planted conflict, against a shuffle": (
            "Planted conflict: target's loss, D³ (curvature, whole batches, no window or balance) against a "
            "shuffle"
        ),
    },
    "layers: through which layers?": {
        "GRASS, SmolLM2-135M, against full training, equal steps": (
            "SmolLM2-135M-Instruct, equal steps: GRASS against full training"
        ),
        "GRASS, small Llama, against full training, equal time": (
            "Small Llama: GRASS against full training, equal time"
        ),
    },
    "anneal: which samples at the end?": {
        "DiReCT, a quarter junk, against a random fifth": (
            "Annealing the small Llama, a quarter junk: DiReCT against a random fifth, equal tokens"
        ),
        "DiReCT, clean pool, against a random fifth": (
            "Annealing the small Llama, clean pool: DiReCT against a random fifth, equal tokens"
        ),
        "the paper's objective, clean pool, against a random fifth": (
            "Annealing the small Llama, clean pool: the paper's objective against a random fifth, equal "
            "tokens"
        ),
    },
}
"""Label in the figure and text of the claim, by question."""

COLOURS = {"better": BLUE, "worse": VERMILION, "no difference seen": GREY}


class Row(NamedTuple):
    """One line of the figure, in nats per token."""

    label: str
    difference: float
    low: float
    high: float
    seeds: str
    verdict: str


def rows(claims: list[Claim]) -> dict[str, list[Row]]:
    """Rows of the figure by question; raises KeyError if a claim is no longer in the index."""
    by_text = {claim.text: claim for claim in claims}
    return {
        question: [_row(label, by_text[text]) for label, text in labels.items()]
        for question, labels in ROWS.items()
    }


def _row(label: str, claim: Claim) -> Row:
    difference, low, high = map(float, re.findall(r"[+-]\d+\.\d+", claim.number))
    return Row(label, difference, low, high, claim.seeds, claim.verdict)


def draw(claims: list[Claim], path: Path = FIGURE) -> None:
    """Write the figure."""
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_facecolor("white")
    axis = figure.subplots()
    ticks, labels, y = [], [], 0.0
    for question, question_rows in rows(claims).items():
        axis.text(
            -0.02, y, question, transform=axis.get_yaxis_transform(), weight="bold", ha="right", va="center"
        )
        for row in question_rows:
            y -= 1
            colour = COLOURS[row.verdict.removesuffix(PRELIMINARY)]
            axis.plot([row.low, row.high], [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
            axis.plot([row.difference], [y], "o", color=colour, markersize=6)
            note = f"{row.difference:+.3f}  ({row.seeds} seeds)"
            axis.text(
                1.02, y, note, transform=axis.get_yaxis_transform(), va="center", color=colour, fontsize=9
            )
            ticks.append(y)
            labels.append(row.label)
        y -= 1.4
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(ticks, labels, fontsize=9)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(y + 0.8, 0.8)
    axis.grid(axis="x", alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("difference in loss, nats per token, with 95 % interval")
    for verdict, x in (("better", 0.0), ("no difference seen", 0.36), ("worse", 0.9)):
        axis.text(
            x, 1.01, verdict, transform=axis.transAxes, color=COLOURS[verdict], weight="bold", fontsize=10
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "gradwise", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    from benchmarks.results import claims

    draw(claims(RESULTS))


if __name__ == "__main__":
    main()
