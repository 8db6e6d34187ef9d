"""Cost of signals: time and memory of every set of quantities against an ordinary forward/backward.

    python -m benchmarks.signals.cost                         # half an hour on one core
    python -m benchmarks.signals.cost --subjects llama10m     # minutes

Ratios to one ordinary forward/backward on the same batch, which also computes the gradients of all weights.
All arms run in turn in one process on one thread; medians over the rounds, by wall-clock and by processor
time (the machine was shared). Every token has a label and there is no padding. That is the most expensive
case, because the engine applies the head only at positions with labels. Gradients are those of the linear
weights of the blocks, k = 1,024. Memory is measured in a process for each arm.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

import gradwise as gw
from benchmarks.common.clocks import in_turn, timed
from benchmarks.common.command_line import Script, names_among
from benchmarks.common.memory import MEBI, NO_HOLES, peak_over_start, saved_for_backward
from benchmarks.common.own_process import in_own_process
from benchmarks.common.tables import Claim, Content, Page, of_kind, table
from benchmarks.signals.subjects import TITLES, Batch, as_batch, full_rows, joined, train_step
from gradwise.signals import plain_head
from gradwise.signals.head import Head, LabelPositions
from gradwise.signals.measure import Measurer
from gradwise.signals.model_cache import clear_cache
from gradwise.signals.model_state import prepared
from gradwise.signals.request import SignalRequest
from gradwise.signals.scope import resolve
from gradwise.signals.sums import GradientRequest, Projector

SIZE = 1024
BASE = ("loss", "embedding", "grad")
SIDES = (64, 128, 256)


@dataclass(frozen=True)
class Load:
    """Rows of equal length, and how many of them make a batch."""

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
"""Quantities of each arm, and the side that matrices are folded to if it is not the default."""

ARMS = ("ordinary", "forward", *ENGINE)


def arms(model: Any, batches: list[Batch]) -> dict[str, Callable[[int], None]]:
    """Every arm as a function of the number of the round, which selects the batch."""

    def of(work: Callable[[Batch], Any]) -> Callable[[int], None]:
        return lambda number: work(batches[number % len(batches)])

    reference = {
        "ordinary": of(partial(train_step, model)),
        "forward": of(partial(_forward, model)),
    }
    return reference | {name: of(engine(model, *what)) for name, what in ENGINE.items()}


def engine(
    model: Any, quantities: tuple[str, ...], side: int | None, seed: int = 0
) -> Callable[[Batch], Any]:
    """Measures a batch; the projection is drawn once, as in a scoring run."""
    wanted = SignalRequest.of(quantities, grad_dim=SIZE, seed=seed)
    projector = Projector(SIZE, seed) if side is None else Projector(SIZE, seed, side)
    request = None
    if wanted.gradients:
        scope, norms = resolve(model, "blocks"), "grad_norm" in quantities
        request = GradientRequest(scope, projector if "grad" in quantities else None, norms=norms)

    plain = Head(model).returns_product(as_batch(torch.zeros((1, 2), dtype=torch.long)))

    def measure(batch: Batch) -> Any:
        with prepared(model) as bare:
            return Measurer(bare, wanted, request, plain_head=plain)(dict(batch))

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


COUNTS = (64, 8)
"""Samples of a call of `gw.collect` from end to end."""


def whole_collect(subject: str, rounds: int) -> dict[str, Any]:
    """`gw.collect` from end to end, against ordinary training steps on the same samples: a model's first
    call, which tries the engine out, and later ones."""
    model, batches = loaded(subject)
    together, rows = LOADS[subject].batch, torch.cat([batch["input_ids"] for batch in batches])
    tokens = batches[0]["input_ids"].numel()

    def train(count: int, _: int) -> None:
        for part in rows[:count].split(together):
            train_step(model, as_batch(part))

    def collect(count: int, first: bool, _: int) -> None:
        if first:
            clear_cache(model)
        data = [{"input_ids": row, "labels": row} for row in rows[:count].tolist()]
        gw.collect(model, data, want=BASE, grad_dim=SIZE, batch_tokens=tokens, progress=False)

    work: dict[str, Callable[[int], None]] = {}
    for count in COUNTS:
        work[f"ordinary, {count}"] = partial(train, count)
        work[f"first call, {count}"] = partial(collect, count, True)
        work[f"later call, {count}"] = partial(collect, count, False)
    return {"seconds": in_turn(work, rounds)}


PIECES = tuple(2**power for power in (17, 19, 20, 22, 24))
"""Logits that the head computes at once."""


def pieces(subject: str, rounds: int) -> dict[str, Any]:
    """The head's part of a batch, with more and fewer logits at once."""
    model, batches = loaded(subject)
    head, positions = model.get_output_embeddings(), LabelPositions.of(batches[0]["input_ids"])
    torch.manual_seed(0)
    hidden = torch.randn(len(positions.targets), model.config.hidden_size)
    seconds = {}
    for work, wanted in (("losses", {}), ("gradients", {"gradient": True}), ("norms", {"norms": True})):

        def run(at_once: int, _: int, wanted: dict[str, bool] = wanted) -> None:
            with patch.object(plain_head, "AT_ONCE", at_once):
                plain_head.at_head(head, hidden, positions, None, **wanted)

        seconds[work] = in_turn({str(size): partial(run, size) for size in PIECES}, rounds)
    return {"seconds": seconds}


def activation_bytes(model: Any, batch: Batch) -> int:
    """Bytes that an ordinary forward keeps for the backward, parameters not counted."""
    with saved_for_backward(model) as saved:
        loss = model(**batch, use_cache=False).loss
    del loss
    return saved[0]


def memory(subject: str, arm: str) -> dict[str, Any]:
    """Rise of resident memory above the loaded model by one batch of one arm; in a process of its own."""
    model, batches = loaded(subject)
    # One short row first, so that what libraries set up once is not counted.
    arms(model, [_short(batches[0])])[arm](0)
    model.zero_grad(set_to_none=True)
    work = arms(model, batches)[arm]
    with peak_over_start() as peak:
        seconds = timed(lambda: work(0))
    entry = {"peak": peak[0], "seconds": seconds, "weights": sum(p.nbytes for p in model.parameters())}
    if arm == "ordinary":
        model.zero_grad(set_to_none=True)
        entry["activations"] = activation_bytes(model, batches[0])
    return entry


def _short(batch: Batch) -> Batch:
    return {name: value[:1, :8] for name, value in batch.items()}


BARS = {"loss+embedding+grad": 0.90, "loss+embedding+grad+grad_norm": 1.25}
"""Highest ratio to ordinary training that the specification allows."""
ALLOWED = 64
"""MiB above one batch's activations that the specification allows."""


def page(content: Content) -> Page:
    parts, timed = [], {}
    for name, title in TITLES.items():
        if timing := content["entries"].get(f"time/{name}"):
            parts += [*_timing(title, timing), *_whole_collect(name, content), *_pieces(name, content)]
            timed[name] = timing["seconds"]
        if entries := of_kind(content, f"memory/{name}"):
            parts += _memory(title, entries)
    return Page(
        sections=parts,
        claims=[_claim(timed)],
    )


def ratios(seconds: dict[str, list[list[float]]], arm: str, clock: int, reference: str = "ordinary") -> float:
    """Median over the rounds of an arm's time over that of ordinary training; clock 0 is wall-clock."""
    pairs = zip(seconds[arm], seconds[reference], strict=True)
    return statistics.median(ours[clock] / theirs[clock] for ours, theirs in pairs)


def _claim(timed: dict[str, dict[str, list[list[float]]]]) -> Claim:
    """All models in one row; the verdict is on the largest ratio of each kind."""
    model_ratios = [[ratios(seconds, arm, 1) for arm in BARS] for seconds in timed.values()]
    models = "; ".join(TITLES[name].split(",")[0] for name in timed)
    text = f"Signals for GRACE over an ordinary forward/backward, without and with exact norms, {models}"
    largest = zip(map(max, zip(*model_ratios, strict=True)), BARS.values(), strict=True)
    verdict = ", ".join(f"{'at most' if ratio <= bar else 'above'} {bar:.2f}" for ratio, bar in largest)
    numbers = "; ".join(", ".join(f"{ratio:.2f}" for ratio in each) for each in model_ratios)
    return Claim(text, numbers, verdict=verdict)


def _timing(title: str, entry: dict[str, Any]) -> list[str]:
    seconds = entry["seconds"]
    rows = [
        [f"`{arm}`", *(f"{ratios(seconds, arm, clock):.3f}" for clock in (0, 1)), _bar(arm)]
        for arm in seconds
        if arm != "ordinary"
    ]
    usual = statistics.median(spent[1] for spent in seconds["ordinary"])
    batches = f"{entry['batches']} batch{'es' if entry['batches'] > 1 else ''}"
    text = (
        f"**Time, {title}**: {len(seconds['ordinary'])} rounds on {batches} in turn; ordinary training takes "
        f"{usual:.2f} processor seconds per batch."
    )
    return [text, table(["arm", "wall-clock", "processor", "allowed"], rows)]


def _bar(arm: str) -> str:
    return f"{BARS[arm]:.2f}" if arm in BARS else "-"


def _whole_collect(name: str, content: Content) -> list[str]:
    entry = content["entries"].get(f"pass/{name}")
    if entry is None:
        return []
    seconds, rows = entry["seconds"], []
    for arm in seconds:
        kind, _, count = arm.partition(", ")
        if kind != "ordinary":
            values = (ratios(seconds, arm, clock, f"ordinary, {count}") for clock in (0, 1))
            rows.append([kind, count, *(f"{ratio:.3f}" for ratio in values)])
    return [
        "`gw.collect` from end to end (loss, embedding, grad). The first call of a model tries the engine "
        "out on a few samples and draws the projection; later calls of the same kind need not.",
        table(["`gw.collect`", "samples", "wall-clock", "processor"], rows),
    ]


def _pieces(name: str, content: Content) -> list[str]:
    entry = content["entries"].get(f"pieces/{name}")
    if entry is None:
        return []
    usual, rows = str(plain_head.AT_ONCE), []
    for work, seconds in entry["seconds"].items():
        median = {size: statistics.median(spent[1] for spent in seconds[size]) for size in seconds}
        rows.append([work, *(f"{median[size] / median[usual]:.2f}" for size in seconds)])
    sizes = [f"{int(size) * 4 / MEBI:g} MiB" for size in next(iter(entry["seconds"].values()))]
    return [
        "The head's part of a batch, by the size of the logits that are computed at once, over the size in "
        "use (processor time).",
        table(["what is wanted", *sizes], rows),
    ]


def _memory(title: str, entries: dict[str, dict[str, Any]]) -> list[str]:
    activations = entries["ordinary"]["activations"] / MEBI
    rows = []
    for arm, entry in entries.items():
        peak = entry["peak"] / MEBI
        rows.append([f"`{arm}`", f"{peak:,.0f}", f"{peak - activations:+,.0f}"])
    text = (
        f"**Memory, {title}**: the highest rise of resident memory above the loaded model during one batch, "
        "MiB. Each arm has a process of its own, with an allocator that leaves no holes. Ordinary training "
        f"keeps {activations:,.0f} MiB of activations for its backward pass; the specification allows "
        f"{ALLOWED} MiB more than that."
    )
    return [text, table(["arm", "peak", "above activations"], rows)]


SCRIPT = Script(__doc__, "signals-cost")
SCRIPT.add_argument("--subjects", type=names_among(LOADS), default=list(LOADS), help=", ".join(LOADS))
SCRIPT.add_argument("--rounds", type=int, default=8, help="timed rounds (default: 8)")


def main() -> None:
    torch.set_num_threads(1)
    options, result = SCRIPT.start()
    for name in options.subjects:
        result.once(f"time/{name}", partial(timing, name, options.rounds))
        if name == "llama10m":
            result.once(f"pass/{name}", partial(whole_collect, name, 5))
            result.once(f"pieces/{name}", partial(pieces, name, 5))
        for arm in ARMS:
            work = partial(in_own_process, "benchmarks.signals.cost:memory", name, arm, environment=NO_HOLES)
            result.once(f"memory/{name}/{arm}", work)


if __name__ == "__main__":
    main()
