"""What propagation is worth on a real training run: guesses against exact values at every refresh.

The small Llama is fine-tuned once on a random third of the clean pool (GSM8K, Dolly, commonsense). At every
checkpoint the whole pool is measured. GRACE then goes through these checkpoints as it would have in a run,
once for each way of propagating: it measures its anchors (here: looks their values up), guesses the rest, and
the guesses are compared with what was measured.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import small_llama
from frame import ROOT
from grace_pools import clean_recipe
from numpy.typing import NDArray
from scipy.stats import rankdata

from gradwise.data import Collator, Data, load
from gradwise.methods.grace import Grace
from gradwise.methods.grace.importance import Target, importance
from gradwise.methods.grace.state import State
from gradwise.numerics.nearest import unit
from gradwise.numerics.propagation import priority, spread
from gradwise.recipe import Model, Recipe
from gradwise.run import train
from gradwise.run.model import load_model, load_tokenizer
from gradwise.signals import Signals, collect

FOLDER = ROOT / "build" / "grace-propagation"
STEPS, EVERY = 120, 24
KINDS = ("loss", "alignment", "head_norm")
SHARES = (0.02, 0.05, 0.1, 0.2)
BETAS = (0.25, 0.5, 0.75)
TIMED_SHARE = 0.1


@dataclass(frozen=True)
class Way:
    """One way of propagating; `none` keeps what was last measured."""

    propagate: str
    beta: float
    drawn: float | None = None
    """Share of the anchors that is drawn at random; as GRACE does it unless given."""

    @property
    def key(self) -> str:
        drawn = "" if self.drawn is None else f"/drawn-{self.drawn:g}"
        return f"{self.propagate}/{self.beta:g}{drawn}"

    def anchors(self, grace: Grace, state: State, step: int) -> NDArray[np.int64]:
        """The nodes that are measured."""
        if self.drawn is None:
            return grace.anchors_at(state, step)
        count = round(state.share * len(state))
        rng = np.random.default_rng(step)
        drawn = rng.choice(len(state), round(self.drawn * count), replace=False)
        ranked = priority(step - state.measured_at, state.importance, state.graph, grace.staleness)
        return spread(state.graph, ranked, count, drawn)

    def settings(self, kind: Any, share: float) -> Grace:
        how: Any = "value" if self.propagate == "none" else self.propagate
        return Grace(
            fraction=0.1,
            importance=kind,
            by_length=False,
            anchors=share,
            refresh_every=EVERY,
            propagate=how,
            beta=self.beta,
        )


WAYS = (
    Way("none", 0.0),
    *(Way(propagate, beta) for propagate in ("value", "change") for beta in BETAS),
    Way("change", 0.5, drawn=0.0),
    Way("change", 0.5, drawn=1.0),
)


def recipe() -> Recipe:
    """The run that is looked at."""
    kept = {"save_strategy": "steps", "save_steps": EVERY, "save_total_limit": STEPS // EVERY}
    return clean_recipe(STEPS, {"method": "random", "fraction": 0.3}, seed=0, **kept)


def measured(share: float = TIMED_SHARE) -> list[dict[str, Any]]:
    """Trains, measures the pool at every checkpoint, and says what each measurement took: whole, and of a
    share of the pool as a refresh would measure it."""
    run = FOLDER / "run"
    if not train(recipe(), run, tell=lambda _: None, progress=False).finished:
        raise SystemExit("Stopped; run the same command to go on.")
    taken = []
    for step in range(0, STEPS + 1, EVERY):
        path = FOLDER / f"signals-{step}.npz"
        if not path.exists():
            _measure(_weights(run, step), path, share)
        with np.load(path) as kept:
            taken.append({"step": step, "whole": float(kept["whole"]), "part": float(kept["part"])})
    return taken


def _weights(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"checkpoint-{step}" if step else small_llama.made() / "annealed"


def _measure(weights: Path, path: Path, share: float) -> None:
    made = recipe()
    assert isinstance(made.model, Model) and isinstance(made.data, Data)
    tokenizer = load_tokenizer(made.model)
    pool: Any = load(made.data, "train", tokenizer, progress=False).dataset
    model, collate = load_model(Model(name=str(weights))), Collator.for_tokenizer(tokenizer)
    rows = np.sort(np.random.default_rng(0).choice(len(pool), round(share * len(pool)), replace=False))
    seconds = []
    for samples in (pool.select(rows[:8]), pool.select(rows), pool):
        start = time.perf_counter()
        found = collect(model, samples, collate, want=["loss", "embedding", "grad"], progress=False)
        seconds.append(time.perf_counter() - start)
    heads = collect(model, pool, collate, want=["head_norm"], progress=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: Any = {name: found.require(name, "this") for name in ("loss", "embedding", "grad", "num_tokens")}
    arrays["head_norm"] = heads.require("head_norm", "this")
    np.savez(path.with_suffix(".partial.npz"), **arrays, part=seconds[1], whole=seconds[2])
    path.with_suffix(".partial.npz").rename(path)


def _signals() -> list[Signals]:
    found = []
    for step in range(0, STEPS + 1, EVERY):
        with np.load(FOLDER / f"signals-{step}.npz") as kept:
            arrays = {name: kept[name] for name in kept.files if name not in ("part", "whole")}
        found.append(Signals(len(arrays["loss"]), **arrays))
    return found


def followed(kind: Any, share: float, way: Way) -> dict[str, Any]:
    """How GRACE's guesses agree with what is there, refresh by refresh.

    Spearman's correlation of importance over all nodes that were not measured at that refresh, and over the
    anchors before theirs were replaced (what a run sees); mean cosine of the embeddings, around their mean.
    """
    signals, grace = _signals(), way.settings(kind, share)
    state = grace.begin(signals[0])
    steps = []
    for number, now in enumerate(signals[1:], start=1):
        state = state.changed(share=share)
        anchors = way.anchors(grace, state, number * EVERY)
        start = time.perf_counter()
        done = grace.refresh(state, anchors, now.take(state.sample[anchors]), number * EVERY)
        seconds = time.perf_counter() - start
        rest = np.setdiff1d(np.arange(len(state)), anchors)
        state = done.state
        steps.append(
            {
                "step": number * EVERY,
                "spearman": _spearman(state.importance[rest], _true(kind, now, state)[rest]),
                "cosine": _cosine(state, now, rest),
                "seen": done.agreement,
                "moved": done.moved / len(anchors),
                "anchors": len(anchors),
                "seconds": round(seconds, 4),
            }
        )
    return {"kind": kind, "share": share, **asdict(way), "refreshes": steps}


def _true(kind: Any, now: Signals, state: State) -> NDArray[np.float64]:
    target = None
    if kind == "alignment":
        target = Target.of(now.require("grad", "this")[state.sample].astype(np.float64))
    return importance(kind, now, state.sample, target=target)


def _cosine(state: State, now: Signals, rest: NDArray[np.int64]) -> float:
    true = now.require("embedding", "this")[state.sample].astype(np.float64)
    centre = true.mean(axis=0)
    a, b = unit(true[rest] - centre), unit(state.embedding[rest] - centre)
    return round(float(np.einsum("ah,ah->a", a, b).mean()), 4)


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return round(float(np.corrcoef(rankdata(a), rankdata(b))[0, 1]), 4)


def combinations() -> Iterator[tuple[Any, float, Way]]:
    """All that is tried."""
    for kind in KINDS:
        for share in SHARES:
            for way in WAYS:
                yield kind, share, way
