"""Which of GRACE's importances keeps garbage out: kinds of records among the picks from a dirty pool.

    python -m benchmarks.grace.importance       # some minutes, after the small Llama is made

The dirty pool has 50 % distinct records, 40 % copies of 24 of them, 5 % random characters, and 5 % snippets
of two words. For two models, stories260K and the small Llama: medians by kind of record at the initial
weights, and the share of garbage (random characters and snippets, 10 % of the pool) among the picks.
"""

from functools import partial
from typing import Any

import numpy as np

from benchmarks.common import small_llama
from benchmarks.common.command_line import Script
from benchmarks.common.folders import BUILD
from benchmarks.common.smollm2 import STORIES
from benchmarks.common.tables import Claim, Content, Page, number, of_kind, table
from benchmarks.grace import pools
from gradwise.data import Collator, Data, Source, load
from gradwise.methods.grace import Grace
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer
from gradwise.signals import Signals, collect

FRACTIONS = (0.05, 0.1, 0.3)
QUANTITIES = ("loss", "embedding", "grad", "grad_norm", "head_norm")
MODELS = ("stories", "small_llama")
SETTINGS: dict[str, dict[str, Any]] = {
    "loss": {"importance": "loss", "by_length": False, "trade_off": 0.5},
    "norm": {"importance": "norm", "by_length": False, "trade_off": 0.5},
    "head_norm": {"importance": "head_norm", "by_length": False, "trade_off": 0.5},
    "head_norm by length": {"importance": "head_norm", "by_length": True, "trade_off": 0.5},
    "alignment": {"importance": "alignment", "by_length": False, "trade_off": 0.5},
    "head_norm by length, trade_off 0.9": {"importance": "head_norm", "by_length": True, "trade_off": 0.9},
    "alignment, trade_off 0.8": {"importance": "alignment", "by_length": False, "trade_off": 0.8},
    "alignment, trade_off 0.9": {"importance": "alignment", "by_length": False, "trade_off": 0.9},
    "coverage alone": {"importance": "loss", "trade_off": 1.0},
}
STORED = BUILD / "grace-importance"


def model_of(name: str) -> Model:
    """stories260K, or the small Llama."""
    return Model(name=str(STORIES if name == "stories" else small_llama.build() / "annealed"))


def signals_of(name: str) -> Signals:
    """All quantities of the dirty pool at a model's initial weights; stored in `build`."""
    path = STORED / f"{name}.npz"
    if not path.exists():
        tokenizer = load_tokenizer(model_of(name))
        data = Data(train=Source(str(pools.build() / "dirty.jsonl")), max_length=256)
        pool: Any = load(data, "train", tokenizer, progress=False).dataset
        if len(pool) != len(pools.kinds()):
            raise SystemExit(f"Loading the dirty pool lost records: {len(pool)} are left.")
        collate = Collator.for_tokenizer(tokenizer)
        signals = collect(load_model(model_of(name)), pool, collate, want=list(QUANTITIES), progress=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: Any = {q: signals.require(q, "this") for q in (*QUANTITIES, "num_tokens")}
        np.savez(path, **arrays)
    with np.load(path) as stored:
        return Signals(len(stored["loss"]), **{q: stored[q] for q in stored.files})


def medians(name: str) -> dict[str, dict[str, float]]:
    """Each quantity's median by kind of record."""
    signals, kind = signals_of(name), pools.kinds()
    values = {q: np.asarray(signals.require(q, "this")) for q in ("loss", "grad_norm", "head_norm")}
    return {
        label: {q: round(float(np.median(one[kind == number])), 3) for q, one in values.items()}
        for number, label in enumerate(pools.KINDS)
    }


def picked_shares(name: str, setting: str) -> dict[str, dict[str, float]]:
    """Share of each kind of record among the picks, by fraction picked."""
    signals, kind, shares = signals_of(name), pools.kinds(), {}
    for fraction in FRACTIONS:
        picks = Grace(fraction=fraction, candidates="all", **SETTINGS[setting]).select(signals).indices
        counts = np.bincount(kind[picks], minlength=len(pools.KINDS)) / len(picks)
        shares[f"{fraction:g}"] = dict(zip(pools.KINDS, counts.round(4).tolist(), strict=True))
    return shares


def page(content: Content) -> Page:
    parts = []
    for model, entry in of_kind(content, "medians").items():
        quantities = list(entry[pools.KINDS[0]])
        rows = [
            [kind, *(number(entry[kind][quantity], 2) for quantity in quantities)]
            for kind in pools.KINDS
            if kind != "copy"
        ]
        parts += [f"**{model}.**", table(["record", *quantities], rows)]
        parts.append(_garbage_table(of_kind(content, f"shares/{model}")))
    loss, alignment = (content["entries"][f"shares/stories/{name}"]["0.1"] for name in ("loss", "alignment"))
    return Page(
        sections=parts,
        claims=[
            Claim(
                "Garbage among 10 % picked by loss and by `alignment`, half coverage (pool: 10 %)",
                f"{_garbage(loss):.0%}, {_garbage(alignment):.0%}",
            ),
        ],
    )


def _garbage(entry: dict[str, float]) -> float:
    return entry["random characters"] + entry["snippet"]


def _garbage_table(entries: dict[str, dict[str, Any]]) -> str:
    fractions = [f"{fraction:g}" for fraction in FRACTIONS]
    rows = [[name, *(f"{_garbage(entry[f]):.1%}" for f in fractions)] for name, entry in entries.items()]
    return table(["importance", *(f"picking {float(f):.0%}" for f in fractions)], rows)


SCRIPT = Script(__doc__, "grace-importance")


def main() -> None:
    _, result = SCRIPT.start()
    for model in MODELS:
        result.once(f"medians/{model}", partial(medians, model))
        for setting in SETTINGS:
            result.once(f"shares/{model}/{setting}", partial(picked_shares, model, setting))


if __name__ == "__main__":
    main()
