"""The decay phase of two models on what each way of finishing picks: equal tokens, the same start.

Every run of the small Llama begins with weights and Adam's state of the checkpoint at the end of the stable
phase, and the learning rate falls linearly from the stable one to zero over 30 steps of two packed rows, as
in the pre-training. SmolLM2 comes as published: no state of its optimizer is there, so its Adam begins anew,
and it gets 15 steps of one row. Training passes over the picks in random order, so that short picks make no
more steps than long ones. `longer` trains on all of the data for as many steps more as measuring the pool's
gradients cost. Held out are records that neither the pool nor the validation samples share.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import direct_pools
import numpy as np
import small_llama
import torch
from transformers import TrainingArguments

import gradwise as gw
from gradwise.data import Collator, token_lengths
from gradwise.methods.baselines import CosineTop, FullFinish, Herding, LossFinish, RandomFinish
from gradwise.methods.direct import Direct
from gradwise.run.model import load_model, load_tokenizer

FRACTION = 0.2
MEASURING = 0.78
"""What measuring a token's gradient costs, in tokens trained on (results of benchmarks/signals.py)."""
FILLED = 0.9
"""Share of a packed row that holds tokens, as in the runs of the other arms."""

ARMS: dict[str, Any] = {
    "full": FullFinish(),
    "longer": FullFinish(),
    "random": RandomFinish(fraction=FRACTION),
    "loss_top": LossFinish(fraction=FRACTION),
    "cosine_top": CosineTop(fraction=FRACTION),
    "herding": Herding(fraction=FRACTION),
    "paper": Direct(fraction=FRACTION, objective="paper"),
    "paper_loose": Direct(fraction=FRACTION, objective="paper", tau=1.0),
    "curvature": Direct(fraction=FRACTION),
    "curvature_tight": Direct(fraction=FRACTION, tau=0.5),
}
"""`paper` has the authors' tau of 0.1, `paper_loose` ours of 1; `curvature_tight` half of it."""

LAST_ARM = "longer"
"""Takes as long as all others together, and is run when they are done."""


@dataclass(frozen=True)
class Subject:
    """A model's decay phase on one kind of pool."""

    stock: direct_pools.Stock
    planted: bool
    steps: int
    rows: int
    """Packed rows of a step, of 512 tokens each."""
    learning_rate: float
    """At the first step."""
    state: Callable[[], Path] | None
    """Makes Adam's state to begin with; a fresh one where None."""
    arms: tuple[str, ...]
    seeds: int


def _stable_state() -> Path:
    return small_llama.made() / "run" / "checkpoints" / f"checkpoint-{small_llama.STABLE}" / "optimizer.pt"


def _small_llama(planted: bool) -> Subject:
    return Subject(
        stock=direct_pools.SMALL_LLAMA,
        planted=planted,
        steps=30,
        rows=2,
        learning_rate=2e-3,
        state=_stable_state,
        arms=tuple(ARMS),
        seeds=5,
    )


SUBJECTS = {
    "decay_clean": _small_llama(planted=False),
    "decay_planted": _small_llama(planted=True),
    "decay_smollm2": Subject(
        stock=direct_pools.SMOLLM2,
        planted=True,
        steps=15,
        rows=1,
        learning_rate=2e-4,
        state=None,
        arms=("random", "curvature", "full", "cosine_top", "paper", "longer"),
        seeds=3,
    ),
}
"""By the benchmark's part."""


def settings(part: str) -> dict[str, Any]:
    """What all results of a part share."""
    subject = SUBJECTS[part]
    found = {"part": part, "steps": subject.steps, "fraction": FRACTION}
    if subject.state is not None:
        return found
    stock = subject.stock
    sizes = {name: getattr(stock, name) for name in ("pool", "copies", "each_junk", "validating", "held_out")}
    return {**found, "rows": subject.rows, "learning_rate": subject.learning_rate, **sizes}


@dataclass(frozen=True)
class Chosen:
    """What an arm trains on, and what is to be known of it."""

    rows: np.ndarray
    """Into the stock."""
    told: dict[str, Any]


def run(subject: Subject, arm: str, seed: int) -> dict[str, Any]:
    """Choose and decay."""
    picked = chosen(subject, ARMS[arm], seed)
    steps = subject.steps + (measuring_steps(subject, seed) if arm == "longer" else 0)
    return {**decayed(subject, picked.rows, steps, seed), **picked.told}


def at_start(subject: Subject) -> dict[str, Any]:
    """Held-out loss before the decay, and what measuring the whole stock took."""
    lengths = token_lengths(direct_pools.dataset(subject.stock, "stock"))
    seconds = direct_pools.signals(subject.stock).seconds
    found = {"samples": len(lengths), "tokens": int(lengths.sum()), "seconds": round(seconds, 1)}
    still = decayed(replace(subject, learning_rate=0.0), np.arange(len(lengths)), 1, seed=0)
    return {"loss": still["loss"], "measured": found}


def chosen(subject: Subject, method: Any, seed: int) -> Chosen:
    """What a method picks from a seed's pool."""
    draw = direct_pools.draw(subject.stock, subject.planted, seed)
    stock = direct_pools.signals(subject.stock)
    start = time.perf_counter()
    pool, validation = (stock.take(rows) for rows in (draw.rows, draw.validation))
    picked = method.select(pool, validation=validation, seed=seed)
    seconds = time.perf_counter() - start
    kinds = np.bincount(draw.kinds[picked.indices], minlength=len(direct_pools.KINDS))
    kept = ("tau", "least_tau", "budget_used", "ridge", "stiff_directions", "effective_rank", "flat_known")
    return Chosen(
        draw.rows[picked.indices],
        {
            "picked": len(picked.indices),
            "label_tokens": picked.told.get("label_tokens"),
            "kinds": dict(zip(direct_pools.KINDS, kinds.tolist(), strict=True)),
            "select_seconds": round(seconds, 3),
            **{name: picked.told[name] for name in kept if name in picked.told},
        },
    )


def decayed(subject: Subject, rows: np.ndarray, steps: int, seed: int) -> dict[str, Any]:
    """Held-out loss after the decay phase on some rows of the stock."""
    lengths = token_lengths(direct_pools.dataset(subject.stock, "stock"))
    entries = _stream(rows, lengths, steps * subject.rows, seed)
    folder = Path(tempfile.mkdtemp())
    try:
        trainer = _trainer(subject, entries, steps, folder, seed)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        used = sum(trainer.session.input_tokens(step) for step in range(steps))
        trainer.evaluate()
        found = held_out_loss(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"loss": found, "steps": steps, "tokens": used, "seconds": round(seconds, 1)}


def held_out_loss(folder: Path) -> float:
    """The last held-out loss of a run, nats per token."""
    from gradwise.report.reading import read_lines

    return next(
        line["held_out_loss"]
        for line in reversed(read_lines(folder / "metrics.jsonl"))
        if "held_out_loss" in line
    )


def measuring_steps(subject: Subject, seed: int) -> int:
    """What measuring a seed's pool and validation samples costs, in steps trained."""
    draw = direct_pools.draw(subject.stock, subject.planted, seed)
    lengths = token_lengths(direct_pools.dataset(subject.stock, "stock"))
    measured = float(lengths[np.concatenate([draw.rows, draw.validation])].sum())
    return round(MEASURING * measured / (subject.rows * FILLED * small_llama.LENGTH))


def _stream(rows: np.ndarray, lengths: np.ndarray, packed: int, seed: int) -> np.ndarray:
    """Passes over the rows of the stock that are sure to fill so many packed ones."""
    rng, entries = np.random.default_rng([seed, 7]), np.zeros(0, dtype=np.int64)
    while lengths[entries].sum() < (packed + 2) * small_llama.LENGTH:
        entries = np.concatenate([entries, rng.permutation(rows)])
    return entries


def _trainer(subject: Subject, entries: np.ndarray, steps: int, folder: Path, seed: int) -> Any:
    stock, model = direct_pools.dataset(subject.stock, "stock"), direct_pools.model_settings(subject.stock)
    arguments = TrainingArguments(
        str(folder), seed=seed, max_steps=steps, per_device_train_batch_size=subject.rows,
        learning_rate=subject.learning_rate, lr_scheduler_type="linear", weight_decay=0.1, adam_beta2=0.98,
        save_strategy="no", logging_steps=10, report_to=[], disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = gw.Trainer(
        load_model(model), arguments, Collator.for_tokenizer(load_tokenizer(model)), stock,
        eval_dataset=direct_pools.dataset(subject.stock, "check"),
        plan=gw.Plan.of([entries.tolist()], pool=len(stock)), packed_length=small_llama.LENGTH,
    )  # fmt: skip
    if subject.state is not None:
        optimizer = trainer.create_optimizer()
        optimizer.load_state_dict(torch.load(subject.state(), weights_only=True))
    return trainer
