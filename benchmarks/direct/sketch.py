"""Effect of projecting gradients on DiReCT's selection, and of clipping them.

    python -m benchmarks.direct.sketch      # some minutes

stories260K on plays, whose unprojected gradients fit in memory: 140 speeches, 75 copies of one, 30 records of
random tokens, 30 snippets of one to three tokens; 40 other speeches for validation; 40 records are picked.
"""

import json
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

import gradwise as gw
from benchmarks.common.command_line import Script
from benchmarks.common.smollm2 import STORIES
from benchmarks.common.tables import Claim, Content, Page, number, table
from gradwise.demo import ASSETS
from gradwise.methods.direct.descent import descent
from gradwise.methods.direct.problem import lengths_of, mean_tokens, relative_lengths, target_gradients
from gradwise.numerics import Spectrum

SPEECHES, VALIDATION, COPIES, JUNK, PICKED = 140, 40, 75, 30, 40
NOISE = SPEECHES + COPIES
"""The first record of random tokens."""
SEEDS, WIDTHS = (0, 1, 2), (512, 1024, 2048)
TAUS = (0.5, 1.0, 2.0)


def records() -> tuple[list[Any], list[Any]]:
    """The pool and the validation samples."""
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    lines = (ASSETS / "plays_train.jsonl").read_text().splitlines()[: SPEECHES + VALIDATION]
    ids = [tokenizer(json.loads(line)["text"])["input_ids"][:64] for line in lines]
    validation, speeches = ids[:VALIDATION], ids[VALIDATION:]
    rng = np.random.default_rng(0)
    noise = rng.integers(3, len(tokenizer), (JUNK, 40)).tolist()
    starts = rng.integers(4, 40, JUNK)
    short = [row[at : at + 3] for row, at in zip(speeches[20:], starts, strict=False)]
    pool = [*speeches, *([speeches[0]] * COPIES), *noise, *short]
    return [_sample(row) for row in pool], [_sample(row) for row in validation]


def measure() -> dict[str, Any]:
    """Projected against unprojected gradients, and picks with and without clipping."""
    model, parts = AutoModelForCausalLM.from_pretrained(STORIES), records()

    def collected(grad_dim: int | None, seed: int = 0) -> list[gw.Signals]:
        return [
            gw.collect(
                model, part, want="grad", grad_dim=grad_dim, seed=seed, progress=False, tell=lambda _: None
            )
            for part in parts
        ]

    whole = collected(None)
    usable = np.flatnonzero(whole[0].ok)  # type: ignore[arg-type]
    scores = np.full(len(whole[0]), np.nan)
    scores[usable] = _scores(whole[0].take(usable), whole[1])
    sketches = {(width, seed): collected(width, seed) for width in WIDTHS for seed in SEEDS}
    entry: dict[str, Any] = {"picked": PICKED, "lengths": _lengths(whole), "kept": {}, "clip": {}}
    best = scores[_picks(*whole, tau=1.0)].sum()
    for width in WIDTHS:
        picks = {seed: _picks(*sketches[width, seed], tau=1.0) for seed in SEEDS}
        entry["kept"][str(width)] = {
            "objective": [round(float(scores[picks[seed]].sum() / best), 4) for seed in SEEDS],
            "jaccard": [round(_jaccard(picks[a], picks[b]), 3) for a, b in combinations(SEEDS, 2)],
        }
    for clip in (True, False):
        for tau in TAUS:
            by_seed = [
                _picks(*sketches[1024, seed], tau=tau, outliers="clip" if clip else "keep") for seed in SEEDS
            ]
            key = f"{'clipped' if clip else 'as they are'}, tau {tau:g}"
            entry["clip"][key] = {
                "random tokens": [int(((p >= NOISE) & (p < NOISE + JUNK)).sum()) for p in by_seed],
                "snippets": [int((p >= NOISE + JUNK).sum()) for p in by_seed],
            }
    return entry


def _sample(row: list[int]) -> dict[str, list[int]]:
    return {"input_ids": row, "labels": row}


def _picks(pool: gw.Signals, validation: gw.Signals, **settings: Any) -> np.ndarray:
    how: dict[str, Any] = {"normalise": "length", "outliers": "clip", "held_out_check": False} | settings
    return gw.Direct(count=PICKED, **how).select(pool, validation=validation).indices


def _scores(pool: gw.Signals, validation: gw.Signals) -> np.ndarray:
    """The objective's value of each sample by unprojected gradients."""
    (z, unit), rows = target_gradients(validation, "length"), np.arange(len(pool))
    scale = lengths_of(pool, rows, "length", mean_tokens(validation, "length")) / unit
    direction = descent(z, Spectrum.of_rows(z)).direction
    return np.asarray(pool.grad) @ direction * scale / np.maximum(1, relative_lengths(pool, rows, validation))


def _lengths(whole: list[gw.Signals]) -> dict[str, float]:
    """Median norm of unprojected gradients by kind, normalised for the number of tokens."""
    usual = mean_tokens(whole[1], "length")
    rows = np.arange(len(whole[0]))
    norms = np.linalg.norm(np.asarray(whole[0].grad), axis=1) * lengths_of(whole[0], rows, "length", usual)
    return {
        "speeches": round(float(np.median(norms[:SPEECHES])), 2),
        "random tokens": round(float(np.median(norms[NOISE : NOISE + JUNK])), 2),
    }


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    same = len(np.intersect1d(one, other))
    return same / (len(one) + len(other) - same)


def page(content: Content) -> Page:
    entry = content["entries"]["sketch/stories"]
    projected = (
        "**Projecting.** The objective of the picks by unprojected gradients, as a share of its value for "
        "picks made with unprojected gradients (above 1 if a projection misjudges the stiff budget), and the "
        "overlap (Jaccard) of the picks of two seeds."
    )
    rows = [
        [f"{int(width):,}", *_cells(one["objective"], 4), *_cells(one["jaccard"], 2)]
        for width, one in entry["kept"].items()
    ]
    norms = entry["lengths"]
    snippets = max(count for one in entry["clip"].values() for count in one["snippets"])
    clip = (
        f"**Clipping.** The median gradient norm is {norms['random tokens']} for random tokens and "
        f"{norms['speeches']} for speeches. The table shows the number of records of random tokens among "
        f"{entry['picked']} picks, with gradients projected to 1,024 numbers. There are at most {snippets} "
        "records of one to three tokens among them."
    )
    clips = [[setting, *map(str, one["random tokens"])] for setting, one in entry["clip"].items()]
    seeds = [f"seed {seed}" for seed in SEEDS]
    least = min(entry["kept"]["1024"]["objective"])
    return Page(
        sections=[
            projected,
            table(["projected to", *seeds, "overlap 0, 1", "overlap 0, 2", "overlap 1, 2"], rows),
            clip,
            table(["gradients", *seeds], clips),
        ],
        claims=[
            Claim(
                "DiReCT's objective with projections of 1,024 numbers, least share of the optimum",
                number(least, 3),
                "3",
            ),
        ],
    )


def _cells(values: Iterable[float], digits: int) -> list[str]:
    return [number(value, digits) for value in values]


SCRIPT = Script(__doc__, "direct-sketch")


def main() -> None:
    SCRIPT.start()[1].once("sketch/stories", measure)


if __name__ == "__main__":
    main()
