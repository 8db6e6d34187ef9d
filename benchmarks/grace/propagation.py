"""What GRACE's propagation is worth in a real run: propagated scores against exact ones at every refresh.

    python -m benchmarks.grace.propagation      # half an hour, after the small Llama is made

The small Llama is fine-tuned once, for 120 steps on a random 30 % of the clean pool (1,200 records of GSM8K,
Dolly and commonsense), and the whole pool is scored at steps 0, 24, 48, ..., 120. GRACE is then replayed over
these checkpoints, once for each way of propagating: it scores its anchors (their exact scores are read from
the stored ones) and propagates to the other samples. The tables show Spearman's correlation with exact
importance over the nodes that a refresh did not score, averaged over the five refreshes. `none` keeps the
last exact score.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.common import small_llama
from benchmarks.common.command_line import Script
from benchmarks.common.figure_style import BLUE, GREY, ORANGE, panels, save
from benchmarks.common.folders import BUILD
from benchmarks.common.tables import Claim, Content, Page, mean, of_kind, table
from benchmarks.grace.pools import clean_recipe
from gradwise.data import Collator, Data, load
from gradwise.methods.grace import Grace
from gradwise.methods.grace.importance import MeanDirection, importance
from gradwise.methods.grace.state import State
from gradwise.numerics.nearest import unit
from gradwise.numerics.propagation import priority, spread
from gradwise.recipe import Model, Recipe
from gradwise.run import train
from gradwise.run.model import load_model, load_tokenizer
from gradwise.signals import Signals, collect

FOLDER = BUILD / "grace-propagation"
STEPS, EVERY = 120, 24
KINDS = ("loss", "alignment", "head_norm")
SHARES = (0.02, 0.05, 0.1, 0.2)
BETAS = (0.25, 0.5, 0.75)
TIMED_SHARE = 0.1


@dataclass(frozen=True)
class Variant:
    """One way of propagating; `none` keeps the last exact score."""

    propagate: str
    beta: float
    drawn: float | None = None
    """Share of the anchors that is drawn at random; if None, GRACE's own."""

    @property
    def key(self) -> str:
        drawn = "" if self.drawn is None else f"/drawn-{self.drawn:g}"
        return f"{self.propagate}/{self.beta:g}{drawn}"

    def anchors(self, grace: Grace, state: State, step: int) -> NDArray[np.int64]:
        """The nodes that are scored."""
        if self.drawn is None:
            return grace.anchors_at(state, step)
        count = round(state.share * len(state))
        rng = np.random.default_rng(step)
        drawn = rng.choice(len(state), round(self.drawn * count), replace=False)
        ranked = priority(step - state.measured_at, state.importance, state.graph, grace.staleness)
        return spread(state.graph, ranked, count, drawn)

    def settings(self, kind: Any, share: float) -> Grace:
        """GRACE's settings."""
        propagate: Any = "value" if self.propagate == "none" else self.propagate
        return Grace(
            fraction=0.1, importance=kind, by_length=False, anchors=share, refresh_every=EVERY,
            propagate=propagate, beta=self.beta,
        )  # fmt: skip


VARIANTS = (
    Variant("none", 0.0),
    *(Variant(propagate, beta) for propagate in ("value", "change") for beta in BETAS),
    Variant("change", 0.5, drawn=0.0),
    Variant("change", 0.5, drawn=1.0),
)


def recipe() -> Recipe:
    """The run that is replayed."""
    checkpoints = {"save_strategy": "steps", "save_steps": EVERY, "save_total_limit": STEPS // EVERY}
    return clean_recipe(STEPS, {"method": "random", "fraction": 0.3}, seed=0, **checkpoints)


def score_checkpoints(share: float = TIMED_SHARE) -> list[dict[str, Any]]:
    """Trains and scores the pool at every checkpoint.

    Returns the seconds of every scoring: of the whole pool, and of a share of it, as a refresh would score
    it.
    """
    run = FOLDER / "run"
    if not train(recipe(), run, tell=lambda _: None, progress=False).finished:
        raise SystemExit("Interrupted; run the same command to resume.")
    seconds = []
    for step in range(0, STEPS + 1, EVERY):
        path = FOLDER / f"signals-{step}.npz"
        if not path.exists():
            _score(
                run / "checkpoints" / f"checkpoint-{step}" if step else small_llama.build() / "annealed",
                path,
                share,
            )
        with np.load(path) as stored:
            seconds.append({"step": step, "whole": float(stored["whole"]), "part": float(stored["part"])})
    return seconds


def _score(weights: Path, path: Path, share: float) -> None:
    run = recipe()
    assert isinstance(run.model, Model) and isinstance(run.data, Data)
    tokenizer = load_tokenizer(run.model)
    pool: Any = load(run.data, "train", tokenizer, progress=False).dataset
    model, collate = load_model(Model(name=str(weights))), Collator.for_tokenizer(tokenizer)
    rows = np.sort(np.random.default_rng(0).choice(len(pool), round(share * len(pool)), replace=False))
    seconds, exact = [], None
    for samples in (pool.select(rows[:8]), pool.select(rows), pool):
        start = time.perf_counter()
        exact = collect(model, samples, collate, want=["loss", "embedding", "grad"], progress=False)
        seconds.append(time.perf_counter() - start)
    assert exact is not None
    heads = collect(model, pool, collate, want=["head_norm"], progress=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: Any = {name: exact.require(name, "this") for name in ("loss", "embedding", "grad", "num_tokens")}
    arrays["head_norm"] = heads.require("head_norm", "this")
    partial_path = path.with_suffix(".partial.npz")
    np.savez(partial_path, **arrays, part=seconds[1], whole=seconds[2])
    partial_path.rename(path)


def _stored_signals() -> list[Signals]:
    signals = []
    for step in range(0, STEPS + 1, EVERY):
        with np.load(FOLDER / f"signals-{step}.npz") as stored:
            arrays = {name: stored[name] for name in stored.files if name not in ("part", "whole")}
        signals.append(Signals(len(arrays["loss"]), **arrays))
    return signals


def replay(kind: Any, share: float, variant: Variant) -> dict[str, Any]:
    """Agreement of propagated with exact scores, refresh by refresh.

    `spearman` is Spearman's correlation of importance over all nodes that were not scored at that refresh;
    `seen` is the same over the anchors before their scores are replaced, which is what a run can observe;
    `cosine` is the mean cosine of the embeddings around their mean.
    """
    signals, grace = _stored_signals(), variant.settings(kind, share)
    state = grace.begin(signals[0])
    refreshes = []
    for number, exact in enumerate(signals[1:], start=1):
        state = state.changed(share=share)
        anchors = variant.anchors(grace, state, number * EVERY)
        start = time.perf_counter()
        refreshed = grace.refresh(state, anchors, exact.take(state.sample[anchors]), number * EVERY)
        seconds = time.perf_counter() - start
        rest = np.setdiff1d(np.arange(len(state)), anchors)
        state = refreshed.state
        refreshes.append(
            {
                "step": number * EVERY,
                "spearman": _spearman(state.importance[rest], _exact_importance(kind, exact, state)[rest]),
                "cosine": _cosine(state, exact, rest),
                "seen": refreshed.agreement, "moved": refreshed.moved / len(anchors),
                "anchors": len(anchors), "seconds": round(seconds, 4),
            }
        )  # fmt: skip
    return {"kind": kind, "share": share, **asdict(variant), "refreshes": refreshes}


def _exact_importance(kind: Any, exact: Signals, state: State) -> NDArray[np.float64]:
    target = None
    if kind == "alignment":
        target = MeanDirection.of(exact.require("grad", "this")[state.sample].astype(np.float64))
    return importance(kind, exact, state.sample, target=target)


def _cosine(state: State, exact: Signals, rest: NDArray[np.int64]) -> float:
    embedding = exact.require("embedding", "this")[state.sample].astype(np.float64)
    centre = embedding.mean(axis=0)
    a, b = unit(embedding[rest] - centre), unit(state.embedding[rest] - centre)
    return round(float(np.einsum("ah,ah->a", a, b).mean()), 4)


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return round(float(np.corrcoef(rankdata(a), rankdata(b))[0, 1]), 4)


def combinations() -> Iterator[tuple[Any, float, Variant]]:
    """Every importance, share of anchors and way of propagating."""
    for kind in KINDS:
        for share in SHARES:
            for variant in VARIANTS:
                yield kind, share, variant


def page(content: Content) -> Page:
    replays = list(of_kind(content, "followed").values())
    seconds, ratio = _cost(content["entries"]["passes/whole"]["seconds"], replays)
    parts = [seconds]
    for kind in KINDS:
        parts += [
            f"**Importance `{kind}`.**",
            _variants([e for e in replays if e["kind"] == kind], "spearman"),
        ]
    same_kind = [entry for entry in replays if entry["kind"] == replays[0]["kind"]]
    parts += [
        "**Embeddings**, mean cosine with exact ones around their mean.",
        _variants(same_kind, "cosine"),
    ]
    parts.append("![agreement over the run](figures/grace-propagation.png)")
    pairs = [
        (refresh["seen"], refresh["spearman"])
        for entry in replays
        if _is(entry, "change", 0.5)
        for refresh in entry["refreshes"]
        if refresh["seen"] is not None
    ]
    gap = statistics.fmean(seen - spearman for seen, spearman in pairs)
    parts.append(
        "A run can observe the agreement at its anchors, before their scores are replaced. On average it "
        f"differed by {gap:+.3f} from the correlation over the other nodes (`change`, beta 0.5, all shares)."
    )
    at_default = {e["kind"]: mean(e["refreshes"], "spearman") for e in replays if _is(e, "change", 0.5, 0.1)}
    return Page(
        sections=parts,
        claims=[
            Claim("Cost of a refresh with 10 % anchors, relative to scoring the whole pool", f"{ratio:.3f}"),
            Claim(
                "Rank correlation of propagated with exact scores, 10 % anchors ("
                + ", ".join(at_default)
                + ")",
                ", ".join(f"{value:.2f}" for value in at_default.values()),
                "1",
            ),
        ],
    )


def _is(entry: dict[str, Any], propagate: str, beta: float, share: float | None = None) -> bool:
    """Whether it is this variant with GRACE's own anchors."""
    same = (entry["propagate"], entry["beta"], entry["drawn"]) == (propagate, beta, None)
    return same and share in (None, entry["share"])


def _cost(scorings: list[dict[str, Any]], replays: list[dict[str, Any]]) -> tuple[str, float]:
    whole, part = mean(scorings, "whole"), mean(scorings, "part")
    propagation = mean([r for e in replays if e["share"] == TIMED_SHARE for r in e["refreshes"]], "seconds")
    ratio = (part + propagation) / whole
    text = (
        f"A refresh with 10 % of the pool as anchors costs {ratio:.3f} of scoring the whole pool: {part:.1f} "
        f"s for scoring and {propagation:.2f} s for propagation and repair, against {whole:.1f} s."
    )
    return text, ratio


def _variants(entries: list[dict[str, Any]], what: str) -> str:
    means = {(_name(entry), entry["share"]): mean(entry["refreshes"], what) for entry in entries}
    names = dict.fromkeys(map(_name, entries))
    rows = [[name, *(f"{means[name, share]:.3f}" for share in SHARES)] for name in names]
    return table(["propagated", *(f"{share:.0%} anchors" for share in SHARES)], rows)


def _name(entry: dict[str, Any]) -> str:
    name = f"{entry['propagate']}, beta {entry['beta']:g}" if entry["beta"] else entry["propagate"]
    return name + {None: "", 0.0: ", all anchors by priority", 1.0: ", all anchors random"}[entry["drawn"]]


LINES = {("none", 0.0): ("last exact score", GREY), ("value", 0.5): ("values propagated", ORANGE),
         ("change", 0.5): ("changes propagated", BLUE)}  # fmt: skip


def draw(content: Content, folder: Path) -> None:
    """Rank correlation of importance by kind, and cosine of embeddings, by refresh, with 10 % anchors."""
    entries = [
        (entry, *line)
        for entry in of_kind(content, "followed").values()
        for way, line in LINES.items()
        if _is(entry, *way, TIMED_SHARE)
    ]
    figure, axes = panels(len(KINDS) + 1, width=3, share_y=False)
    for axis, kind in zip(axes, [*KINDS, None], strict=True):
        for entry, label, colour in entries:
            if entry["kind"] != (kind or KINDS[0]):
                continue
            steps, what = [r["step"] for r in entry["refreshes"]], "spearman" if kind else "cosine"
            axis.plot(
                steps, [r[what] for r in entry["refreshes"]], color=colour, marker="o", ms=3, label=label
            )
            if kind and entry["propagate"] == "change":
                seen = [r["seen"] for r in entry["refreshes"]]
                axis.plot(steps, seen, color=colour, linestyle=":", label="as the run observes it")
        axis.set_title(kind or "embeddings", fontsize=10)
        axis.set_xlabel("optimizer steps")
        axis.axhline(0, color="black", linewidth=0.5)
    axes[0].set_ylabel("rank correlation with exact scores")
    axes[-1].set_ylabel("cosine with exact embeddings")
    axes[0].legend(fontsize=7, frameon=False)
    save(figure, folder / "grace-propagation.png")


SCRIPT = Script(__doc__, "grace-propagation")


def main() -> None:
    _, result = SCRIPT.start()
    result.once("passes/whole", lambda: {"seconds": score_checkpoints()})
    for kind, share, variant in combinations():
        result.once(f"followed/{kind}/{share:g}/{variant.key}", partial(replay, kind, share, variant))


if __name__ == "__main__":
    main()
