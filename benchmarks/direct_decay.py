"""The decay phase of the small Llama on what each way of finishing picks: equal tokens, the same start.

Every run begins with weights and Adam's state of the checkpoint at the end of the stable phase, and the
learning rate falls linearly from the stable one to zero over `STEPS` steps of two packed rows, as in the
pre-training: passes over the picks in random order, so that short picks make no more steps than long ones.
`longer` trains on all of the data for as many steps more as measuring the pool's gradients cost. Held out
are 180 records that neither the pool nor the validation samples share.
"""

import shutil
import tempfile
import time
from dataclasses import dataclass
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

STEPS = 30
ROWS = 2
"""Packed rows of a step."""
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
class Chosen:
    """What an arm trains on, and what is to be known of it."""

    rows: np.ndarray
    """Into the stock."""
    told: dict[str, Any]


def run(arm: str, planted: bool, seed: int) -> dict[str, Any]:
    """Choose and decay."""
    picked = chosen(ARMS[arm], planted, seed)
    steps = STEPS + (measuring_steps(planted, seed) if arm == "longer" else 0)
    return {**decayed(picked.rows, steps, seed), **picked.told}


def chosen(method: Any, planted: bool, seed: int) -> Chosen:
    """What a method picks from a seed's pool."""
    draw, stock = direct_pools.draw(planted, seed), direct_pools.signals()
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


def decayed(rows: np.ndarray, steps: int, seed: int) -> dict[str, Any]:
    """Held-out loss after the decay phase on some rows of the stock."""
    stock = direct_pools.dataset("stock")
    entries = _stream(rows, token_lengths(stock), steps, seed)
    folder = Path(tempfile.mkdtemp())
    try:
        trainer = _trainer(stock, entries, steps, folder, seed)
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


def measuring_steps(planted: bool, seed: int) -> int:
    """What measuring a seed's pool and validation samples costs, in steps trained."""
    draw, lengths = direct_pools.draw(planted, seed), token_lengths(direct_pools.dataset("stock"))
    measured = float(lengths[np.concatenate([draw.rows, draw.validation])].sum())
    return round(MEASURING * measured / (ROWS * FILLED * small_llama.LENGTH))


def _stream(rows: np.ndarray, lengths: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """Passes over the rows that are sure to fill so many steps."""
    rng, entries = np.random.default_rng([seed, 7]), np.zeros(0, dtype=np.int64)
    while lengths[entries].sum() < (steps + 1) * ROWS * small_llama.LENGTH:
        entries = np.concatenate([entries, rng.permutation(rows)])
    return entries


def _trainer(stock: Any, entries: np.ndarray, steps: int, folder: Path, seed: int) -> Any:
    tokenizer = load_tokenizer(direct_pools.model_settings())
    stable = small_llama.made() / "run" / "checkpoints" / f"checkpoint-{small_llama.STABLE}"
    arguments = TrainingArguments(
        str(folder), seed=seed, max_steps=steps, per_device_train_batch_size=ROWS, learning_rate=2e-3,
        lr_scheduler_type="linear", weight_decay=0.1, adam_beta2=0.98, save_strategy="no", logging_steps=10,
        report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = gw.Trainer(
        load_model(direct_pools.model_settings()), arguments, Collator.for_tokenizer(tokenizer), stock,
        eval_dataset=direct_pools.dataset("check"), plan=gw.Plan.of([entries.tolist()], pool=len(stock)),
        packed_length=small_llama.LENGTH,
    )  # fmt: skip
    optimizer = trainer.create_optimizer()
    optimizer.load_state_dict(torch.load(stable / "optimizer.pt", weights_only=True))
    return trainer
