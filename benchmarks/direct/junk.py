"""DiReCT in pools with one kind of junk: its share of the picks, with and without the rules against it.

    python -m benchmarks.direct.junk      # two minutes on one core

stories260K. Twelve pools of 360 texts of five sets and 40 rows of junk, a tenth; 40 samples are picked
towards 64 samples of a target. All rows have at most 64 tokens. A fragment has 2 to 12 tokens.
"""

from functools import cache, partial
from typing import Any

import numpy as np

import gradwise as gw
from benchmarks.common import tables
from benchmarks.common.command_line import Script
from benchmarks.common.tables import Content, Page
from benchmarks.direct import stories

SETS = ("plays", "encyclopedia", "dolly", "commonsense", "gsm8k")
TARGETS = ("svamp", "piqa", "siqa", "sentences")
PER_SET, JUNK, CHOOSING, LENGTH = 240, 120, 64, 64
OF_SET, OF_JUNK, PICKS, POOLS = 72, 40, 40, 12
"""Rows of each set and of junk in a pool; picks; number of pools."""
NATURAL = OF_SET * len(SETS)
SHARE = OF_JUNK / (OF_JUNK + NATURAL)
OUTLIERS = ("leave_out", "keep")


@cache
def record_signals() -> dict[str, gw.Signals]:
    """Gradients of all texts, junk and target samples."""
    rows = {name: stories.token_rows(name, PER_SET, LENGTH) for name in SETS}
    rows |= {name: stories.token_rows(name, CHOOSING, LENGTH) for name in TARGETS}
    return stories.signals(
        "junk", rows | {kind: stories.junk_rows(kind, JUNK, LENGTH) for kind in stories.JUNK}
    )


def pool(kind: str, seed: int) -> gw.Signals:
    """Texts of all sets, and junk at the end."""
    rng = np.random.default_rng([seed, 5])
    counts = dict.fromkeys(SETS, OF_SET) | {kind: OF_JUNK}
    drawn = [
        record_signals()[name].take(np.sort(rng.permutation(len(record_signals()[name]))[:count]))
        for name, count in counts.items()
    ]
    return stories.joined(drawn)


def run(kind: str, target: str) -> dict[str, list[float]]:
    """Share of the junk among the picks from each pool, by what happens to outliers."""
    shares: dict[str, list[float]] = {}
    for how in OUTLIERS:
        method = gw.Direct(count=PICKS, outliers=how)  # type: ignore[arg-type]
        for seed in range(POOLS):
            picked = method.select(pool(kind, seed), validation=record_signals()[target], seed=seed)
            shares.setdefault(how, []).append(float((picked.indices >= NATURAL).mean()))
    return shares


def page(content: Content) -> Page:
    rows, above = [], 0
    for kind in stories.JUNK:
        for target in TARGETS:
            shares: dict[str, Any] = content["entries"][f"{kind}/{target}"]
            cells = [
                f"{max(shares[how]):.0%} ({sum(share > SHARE for share in shares[how])} of {POOLS})"
                for how in OUTLIERS
            ]
            above += sum(share > SHARE for share in shares["leave_out"])
            rows.append([kind, target, *cells])
    head = ["junk", "target", *(f"`outliers: {how}`" for how in OUTLIERS)]
    text = (
        f"Largest share of the junk among {PICKS} picks, and the number of pools in which it was above its "
        f"share of the pool, {SHARE:.0%}. `sentences` are formulaic sentences of some 24 tokens."
    )
    claim = tables.Claim(
        "Pools in which a kind of junk exceeds its share of DiReCT's picks", f"{above} of {len(rows) * POOLS}"
    )
    return Page(title="DiReCT and junk", sections=[text, tables.table(head, rows)], claims=[claim])


SCRIPT = Script(__doc__, "direct-junk")


def main() -> None:
    _, result = SCRIPT.start()
    for kind in stories.JUNK:
        for target in TARGETS:
            result.once(f"{kind}/{target}", partial(run, kind, target))


if __name__ == "__main__":
    main()
