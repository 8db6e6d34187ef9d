"""Which importance keeps garbage out: shares of each kind of record among the picks from the dirty pool."""

from typing import Any

import grace_pools
import numpy as np
import small_llama
from frame import ROOT

from gradwise.data import Collator, Data, Source, load
from gradwise.demo import ASSETS
from gradwise.methods.grace import Grace
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer
from gradwise.signals import Signals, collect

FRACTIONS = (0.05, 0.1, 0.3)
QUANTITIES = ("loss", "embedding", "grad", "grad_norm", "head_norm")
SUBJECTS = ("stories", "small_llama")
WAYS: dict[str, dict[str, Any]] = {
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
KEPT = ROOT / "build" / "grace-importance"


def model_of(name: str) -> Model:
    """stories260K, or the small Llama."""
    return Model(name=str(ASSETS / "stories260K" if name == "stories" else small_llama.made() / "annealed"))


def signals_of(name: str) -> Signals:
    """All quantities of the dirty pool at a model's first weights; kept in `build`."""
    path = KEPT / f"{name}.npz"
    if not path.exists():
        tokenizer = load_tokenizer(model_of(name))
        data = Data(train=Source(str(grace_pools.made() / "dirty.jsonl")), max_length=256)
        pool: Any = load(data, "train", tokenizer, progress=False).dataset
        if len(pool) != len(grace_pools.kinds()):
            raise SystemExit(f"The dirty pool lost records on loading: {len(pool)} are left.")
        collate = Collator.for_tokenizer(tokenizer)
        found = collect(load_model(model_of(name)), pool, collate, want=list(QUANTITIES), progress=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: Any = {q: found.require(q, "this") for q in (*QUANTITIES, "num_tokens")}
        np.savez(path, **arrays)
    with np.load(path) as kept:
        return Signals(len(kept["loss"]), **{q: kept[q] for q in kept.files})


def medians(name: str) -> dict[str, dict[str, float]]:
    """Each quantity's median by kind of record."""
    signals, kind = signals_of(name), grace_pools.kinds()
    values = {q: np.asarray(signals.require(q, "this")) for q in ("loss", "grad_norm", "head_norm")}
    return {
        told: {q: round(float(np.median(one[kind == number])), 3) for q, one in values.items()}
        for number, told in enumerate(grace_pools.KINDS)
    }


def shares(name: str, way: str, fraction: float) -> dict[str, float]:
    """Share of each kind of record among the picks."""
    picked = Grace(fraction=fraction, candidates="all", **WAYS[way]).select(signals_of(name)).indices
    found = np.bincount(grace_pools.kinds()[picked], minlength=len(grace_pools.KINDS)) / len(picked)
    return {told: round(float(share), 4) for told, share in zip(grace_pools.KINDS, found, strict=True)}
