"""What the signals cost: time and memory of every set of quantities against an ordinary forward + backward.

    python benchmarks/signals_cost.py SUBJECT ARM OUT.json      # peak memory of one arm, in this process

`signals.py` calls `timing` in one process, all arms in turn, and starts one process per arm for memory.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from signals_subjects import Batch, full_rows, in_turn, joined, ordinary, peak_over_now, timed
from torch import Tensor

import gradwise as gw
from gradwise.atomic import write_json
from gradwise.signals.given_back import lent
from gradwise.signals.measure import Measurer
from gradwise.signals.scope import resolve
from gradwise.signals.sums import Asked, Projector
from gradwise.signals.wanted import Wanted

SIZE = 1024
BASE = ("loss", "embedding", "grad")
SIDES = (64, 128, 256)


@dataclass(frozen=True)
class Load:
    """Rows of equal length, so many to a batch."""

    rows: int
    length: int
    batch: int


LOADS = {"llama10m": Load(64, 256, 16), "smollm2": Load(4, 256, 4)}

ENGINE: dict[str, tuple[tuple[str, ...], int | None]] = {
    "loss": (("loss",), None),
    "head_norm": (("head_norm",), None),
    "loss+embedding+grad": (BASE, None),
    "loss+embedding+grad+grad_norm": ((*BASE, "grad_norm"), None),
    "grad_norm": (("grad_norm",), None),
    **{f"grad, side {side}": (("grad",), side) for side in SIDES},
}
"""Quantities of each arm, and the side that matrices are folded to where it is not the default."""

ARMS = ("ordinary", "forward", *ENGINE)


def arms(model: Any, batches: list[Batch]) -> dict[str, Callable[[int], None]]:
    """Every arm as what it does with a batch, chosen by the number of the round."""

    def of(work: Callable[[Batch], Any]) -> Callable[[int], None]:
        return lambda number: work(batches[number % len(batches)])

    plain = {
        "ordinary": of(lambda batch: ordinary(model, batch)),
        "forward": of(lambda b: _forward(model, b)),
    }
    return plain | {name: of(engine(model, *what)) for name, what in ENGINE.items()}


def engine(
    model: Any, quantities: tuple[str, ...], side: int | None, seed: int = 0
) -> Callable[[Batch], Any]:
    """Measures a batch; the projection's random numbers are drawn once, as in a pass."""
    wanted = Wanted.of(quantities, grad_dim=SIZE, seed=seed)
    projector = Projector(SIZE, seed) if side is None else Projector(SIZE, seed, side)
    asked = None
    if wanted.gradients:
        scope, norms = resolve(model, "blocks"), "grad_norm" in quantities
        asked = Asked(scope, projector if "grad" in quantities else None, norms=norms)

    def measure(batch: Batch) -> Any:
        with lent(model) as bare:
            return Measurer(bare, wanted, asked)(dict(batch))

    return measure


@torch.no_grad()
def _forward(model: Any, batch: Batch) -> None:
    model(**batch, use_cache=False)


def loaded(subject: str) -> tuple[Any, list[Batch]]:
    """The model and its batches."""
    load = LOADS[subject]
    model, rows = full_rows(subject, load.rows, load.length)
    return model, [joined(rows[start : start + load.batch]) for start in range(0, load.rows, load.batch)]


def timing(subject: str, rounds: int) -> dict[str, Any]:
    """Seconds of every arm in every round, each round on the next batch."""
    model, batches = loaded(subject)
    return {"seconds": in_turn(arms(model, batches), rounds), "batches": len(batches)}


def whole_pass(subject: str, rounds: int) -> dict[str, Any]:
    """`gw.collect` from end to end, inspection and rehearsal included, against ordinary passes over the same
    batches."""
    model, batches = loaded(subject)
    rows = [row.tolist() for batch in batches for row in batch["input_ids"]]
    data = [{"input_ids": row, "labels": row} for row in rows]
    tokens = batches[0]["input_ids"].numel()

    def collect(_: int) -> None:
        gw.collect(model, data, want=BASE, grad_dim=SIZE, batch_tokens=tokens, progress=False)

    def train(_: int) -> None:
        for batch in batches:
            ordinary(model, batch)

    return {"seconds": in_turn({"ordinary": train, "gw.collect": collect}, rounds)}


# ---- memory ------------------------------------------------------------------------------------------------


def saved_bytes(model: Any, batch: Batch) -> int:
    """Bytes of the storages that an ordinary forward pass keeps for the backward one, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch, use_cache=False).loss
    del loss
    return sum(saved.values())


def memory(subject: str, arm: str) -> dict[str, Any]:
    """The highest that resident memory rises over the loaded model, by one batch of one arm."""
    model, batches = loaded(subject)
    # One short row first: what libraries set up once is not the arm's.
    arms(model, [_short(batches[0])])[arm](0)
    model.zero_grad(set_to_none=True)
    work = arms(model, batches)[arm]
    with peak_over_now() as peak:
        seconds = timed(lambda: work(0))
    found = {"peak": peak[0], "seconds": seconds, "weights": sum(p.nbytes for p in model.parameters())}
    if arm == "ordinary":
        model.zero_grad(set_to_none=True)
        found["activations"] = saved_bytes(model, batches[0])
    return found


def _short(batch: Batch) -> Batch:
    return {name: value[:1, :8] for name, value in batch.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_json(Path(sys.argv[3]), json.loads(json.dumps(memory(sys.argv[1], sys.argv[2]))))
