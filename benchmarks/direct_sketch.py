"""What projecting gradients costs DiReCT's choice, and what clipping them keeps out.

stories260K on plays, whose gradients fit in memory whole: 140 speeches, 75 copies of one, 30 records of
random tokens, 30 snippets of one to three; 40 other speeches validate, 40 records are picked.
"""

import json
from itertools import combinations
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

import gradwise as gw
from gradwise.demo import ASSETS
from gradwise.methods.direct.descent import descent
from gradwise.methods.direct.problem import clipped, lengths_of, mean_tokens, target_gradients
from gradwise.numerics import Spectrum

SPEECHES, VALIDATING, COPIES, JUNK, PICKED = 140, 40, 75, 30, 40
NOISE = SPEECHES + COPIES
"""The first record of random tokens."""
SEEDS, WIDTHS = (0, 1, 2), (512, 1024, 2048)
TAUS = (0.5, 1.0, 2.0)


def records() -> tuple[list[Any], list[Any]]:
    """The pool and the validation samples."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "stories260K")
    lines = (ASSETS / "plays_train.jsonl").read_text().splitlines()[: SPEECHES + VALIDATING]
    ids = [tokenizer(json.loads(line)["text"])["input_ids"][:64] for line in lines]
    validation, speeches = ids[:VALIDATING], ids[VALIDATING:]
    rng = np.random.default_rng(0)
    noise = rng.integers(3, len(tokenizer), (JUNK, 40)).tolist()
    starts = rng.integers(4, 40, JUNK)
    short = [row[at : at + 3] for row, at in zip(speeches[20:], starts, strict=False)]
    pool = [*speeches, *([speeches[0]] * COPIES), *noise, *short]
    return [_sample(row) for row in pool], [_sample(row) for row in validation]


def compared() -> dict[str, Any]:
    """Sketches against whole gradients, and picks with and without clipping."""
    model, parts = AutoModelForCausalLM.from_pretrained(ASSETS / "stories260K"), records()

    def measured(grad_dim: int | None, seed: int = 0) -> list[gw.Signals]:
        return [
            gw.collect(model, part, want="grad", grad_dim=grad_dim, seed=seed, progress=False, tell=_silent)
            for part in parts
        ]

    whole = measured(None)
    usable = np.flatnonzero(whole[0].ok)  # type: ignore[arg-type]
    scores = np.full(len(whole[0]), np.nan)
    scores[usable] = _scores(whole[0].take(usable), whole[1])
    sketches = {(width, seed): measured(width, seed) for width in WIDTHS for seed in SEEDS}
    found: dict[str, Any] = {"picked": PICKED, "lengths": _lengths(whole), "kept": {}, "clip": {}}
    for width in WIDTHS:
        picks = {seed: _picks(*sketches[width, seed], tau=1.0) for seed in SEEDS}
        best = scores[_picks(*whole, tau=1.0)].sum()
        found["kept"][str(width)] = {
            "objective": [round(float(scores[picks[seed]].sum() / best), 4) for seed in SEEDS],
            "jaccard": [round(_jaccard(picks[a], picks[b]), 3) for a, b in combinations(SEEDS, 2)],
        }
    for clip in (True, False):
        for tau in TAUS:
            picks = [_picks(*sketches[1024, seed], tau=tau, clip=clip) for seed in SEEDS]
            key = f"{'clipped' if clip else 'as they are'}, tau {tau:g}"
            found["clip"][key] = {
                "random tokens": [int(((p >= NOISE) & (p < NOISE + JUNK)).sum()) for p in picks],
                "snippets": [int((p >= NOISE + JUNK).sum()) for p in picks],
            }
    return found


def _sample(row: list[int]) -> dict[str, list[int]]:
    return {"input_ids": row, "labels": row}


def _picks(pool: gw.Signals, validation: gw.Signals, **settings: Any) -> np.ndarray:
    return gw.Direct(count=PICKED, **settings).select(pool, validation=validation).indices


def _scores(pool: gw.Signals, validation: gw.Signals) -> np.ndarray:
    """What the objective gives each sample by whole gradients."""
    z, rows = target_gradients(validation, "length"), np.arange(len(pool))
    scale = lengths_of(pool, rows, "length", mean_tokens(validation, "length"))
    way = descent(z, Spectrum.of_rows(z)).direction
    return np.asarray(pool.grad) @ way * clipped(pool, rows, scale, z)


def _lengths(whole: list[gw.Signals]) -> dict[str, float]:
    """Median length of whole gradients by kind, normalised for the number of tokens."""
    usual = mean_tokens(whole[1], "length")
    rows = np.arange(len(whole[0]))
    lengths = np.linalg.norm(np.asarray(whole[0].grad), axis=1) * lengths_of(whole[0], rows, "length", usual)
    return {
        "speeches": round(float(np.median(lengths[:SPEECHES])), 2),
        "random tokens": round(float(np.median(lengths[NOISE : NOISE + JUNK])), 2),
    }


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    same = len(np.intersect1d(one, other))
    return same / (len(one) + len(other) - same)


def _silent(_: str) -> None:
    pass
