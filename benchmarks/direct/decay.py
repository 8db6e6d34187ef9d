"""The annealing phase of two models on what each method selects: equal tokens, the same start.

    python -m benchmarks.direct.decay --pool clean      # the small Llama; an hour on one core
    python -m benchmarks.direct.decay --pool planted    # the same with copies and junk in the pool
    python -m benchmarks.direct.decay --pool smollm2    # forty minutes on two cores
    python -m benchmarks.direct.decay --arms full,random,direct    # some of the arms, 25 s a run

The small Llama starts from the weights and Adam's state of the checkpoint at the end of the stable phase.
SmolLM2 comes as published, without the state of its optimizer, so Adam starts fresh. The learning rate falls
linearly to zero. Rows are packed, and the picks repeat in random order, so that short picks make no more
steps than long ones. Every token is learned. `full` trains on all records; `longer` does so for as many
additional steps as collecting the pool's gradients costs. Held-out records are neither in the pool nor among
the validation samples.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

import gradwise as gw
from benchmarks.common import small_llama, tables
from benchmarks.common.command_line import Script, names_among, silence_libraries
from benchmarks.common.folders import RESULTS
from benchmarks.common.result_file import ResultFile
from benchmarks.common.tables import Content, Page, Runs
from benchmarks.direct import pools
from gradwise.data import Collator, token_lengths
from gradwise.methods.baselines import CosineTop, FullAnneal, Herding, LossAnneal, RandomAnneal
from gradwise.methods.direct import Direct
from gradwise.report.reading import read_lines
from gradwise.run.model import load_model, load_tokenizer

FRACTION = 0.2
MEASURING = 0.78
"""Cost of collecting a token's gradient, in tokens of training (result of `benchmarks.signals.cost`)."""
FILLED = 0.9
"""Share of a packed row that holds tokens, as in the runs of the other arms."""

THEN: dict[str, Any] = {"normalise": "length", "outliers": "clip", "held_out_check": False}
"""DiReCT's earlier defaults, of the arms that are not `direct`."""

ARMS: dict[str, Any] = {
    "full": FullAnneal(),
    "longer": FullAnneal(),
    "random": RandomAnneal(fraction=FRACTION),
    "loss_top": LossAnneal(fraction=FRACTION),
    "cosine_top": CosineTop(fraction=FRACTION),
    "herding": Herding(fraction=FRACTION),
    "paper": Direct(fraction=FRACTION, objective="paper", **THEN),
    "paper_loose": Direct(fraction=FRACTION, objective="paper", tau=1.0, **THEN),
    "curvature": Direct(fraction=FRACTION, objective="curvature", **THEN),
    "curvature_tight": Direct(fraction=FRACTION, objective="curvature", tau=0.5, **THEN),
    "direct": Direct(fraction=FRACTION),
}
"""`paper` has the authors' tau of 0.1, `paper_loose` our default of 1; `curvature_tight` half of that.
`direct` is the default of now."""
LAST_ARM = "longer"
"""Takes as long as all other arms together, so it runs after them."""


@dataclass(frozen=True)
class Subject:
    """A model's annealing phase on one kind of pool."""

    stock: pools.Stock
    planted: bool
    steps: int
    rows: int
    """Packed rows of a step, of 512 tokens each."""
    learning_rate: float
    """At the first step."""
    state: Callable[[], Path] | None
    """Returns Adam's state at the start; None for a fresh one."""
    arms: tuple[str, ...]
    seeds: int


def _stable_state() -> Path:
    return small_llama.build() / "run" / "checkpoints" / f"checkpoint-{small_llama.STABLE}" / "optimizer.pt"


CLEAN = Subject(
    stock=pools.SMALL_LLAMA, planted=False, steps=30, rows=2, learning_rate=2e-3, state=_stable_state,
    arms=tuple(ARMS), seeds=5,
)  # fmt: skip
SUBJECTS = {
    "decay_clean": CLEAN,
    "decay_planted": replace(CLEAN, planted=True),
    "decay_smollm2": Subject(
        stock=pools.SMOLLM2, planted=True, steps=15, rows=1, learning_rate=2e-4, state=None,
        arms=("random", "curvature", "full", "cosine_top", "paper", "longer"), seeds=3,
    ),
}  # fmt: skip
"""By the part of the result file."""


def settings(part: str) -> dict[str, Any]:
    """Values that all entries of a result file share."""
    subject = SUBJECTS[part]
    shared = {"part": part, "steps": subject.steps, "fraction": FRACTION}
    if subject.state is not None:
        return shared
    names = ("pool", "copies", "each_junk", "validating", "held_out")
    sizes = {name: getattr(subject.stock, name) for name in names}
    return {**shared, "rows": subject.rows, "learning_rate": subject.learning_rate, **sizes}


def run(subject: Subject, arm: str, seed: int) -> dict[str, Any]:
    """Select and anneal."""
    rows, details = select(subject, ARMS[arm], seed)
    steps = subject.steps + (collecting_steps(subject, seed) if arm == "longer" else 0)
    return {**anneal(subject, rows, steps, seed), **details}


def at_start(subject: Subject) -> dict[str, Any]:
    """Held-out loss before the decay, and the cost of collecting the gradients of the whole stock."""
    lengths = token_lengths(pools.dataset(subject.stock, "stock"))
    seconds = pools.signals(subject.stock).seconds
    cost = {"samples": len(lengths), "tokens": int(lengths.sum()), "seconds": round(seconds, 1)}
    unchanged = anneal(replace(subject, learning_rate=0.0), np.arange(len(lengths)), 1, seed=0)
    return {"loss": unchanged["loss"], "measured": cost}


def select(subject: Subject, method: Any, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """A method's picks from a seed's pool, as rows of the stock; and details of the selection."""
    draw = pools.draw(subject.stock, subject.planted, seed)
    stock = pools.signals(subject.stock)
    start = time.perf_counter()
    pool, validation = (stock.take(rows) for rows in (draw.rows, draw.validation))
    selection = method.select(pool, validation=validation, seed=seed)
    seconds = time.perf_counter() - start
    kinds = np.bincount(draw.kinds[selection.indices], minlength=len(pools.KINDS))
    names = ("tau", "least_tau", "budget_used", "ridge", "stiff_directions", "effective_rank", "flat_known")
    return draw.rows[selection.indices], {
        "picked": len(selection.indices),
        "label_tokens": selection.details.get("label_tokens"),
        "kinds": dict(zip(pools.KINDS, kinds.tolist(), strict=True)),
        "select_seconds": round(seconds, 3),
        **{name: selection.details[name] for name in names if name in selection.details},
    }


def anneal(subject: Subject, rows: np.ndarray, steps: int, seed: int) -> dict[str, Any]:
    """Held-out loss after the annealing phase on some rows of the stock."""
    lengths = token_lengths(pools.dataset(subject.stock, "stock"))
    entries = stream(rows, lengths, steps * subject.rows, seed)
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as name:
        trainer = _trainer(subject, entries, steps, Path(name), seed)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        tokens = sum(trainer.session.input_tokens(step) for step in range(steps))
        trainer.evaluate()
        lines = reversed(read_lines(Path(name) / "metrics.jsonl"))
        loss = next(line["held_out_loss"] for line in lines if "held_out_loss" in line)
    return {"loss": loss, "steps": steps, "tokens": tokens, "seconds": round(seconds, 1)}


def collecting_steps(subject: Subject, seed: int) -> int:
    """Training steps that cost as much as collecting the gradients of a seed's pool and validation
    samples."""
    draw = pools.draw(subject.stock, subject.planted, seed)
    lengths = token_lengths(pools.dataset(subject.stock, "stock"))
    tokens = float(lengths[np.concatenate([draw.rows, draw.validation])].sum())
    return round(MEASURING * tokens / (subject.rows * FILLED * small_llama.LENGTH))


def stream(rows: np.ndarray, lengths: np.ndarray, packed: int, seed: int) -> np.ndarray:
    """Random orders of the rows, one after the other, until they are sure to fill this number of packed
    rows."""
    rng, entries = np.random.default_rng([seed, 7]), np.zeros(0, dtype=np.int64)
    while lengths[entries].sum() < (packed + 2) * small_llama.LENGTH:
        entries = np.concatenate([entries, rng.permutation(rows)])
    return entries


def _trainer(subject: Subject, entries: np.ndarray, steps: int, folder: Path, seed: int) -> Any:
    stock, model = pools.dataset(subject.stock, "stock"), pools.model_settings(subject.stock)
    arguments = TrainingArguments(
        str(folder), seed=seed, max_steps=steps, per_device_train_batch_size=subject.rows,
        learning_rate=subject.learning_rate, lr_scheduler_type="linear", weight_decay=0.1, adam_beta2=0.98,
        save_strategy="no", logging_steps=10, report_to=[], disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = gw.Trainer(
        load_model(model), arguments, Collator.for_tokenizer(load_tokenizer(model)), stock,
        eval_dataset=pools.dataset(subject.stock, "check"),
        plan=gw.Plan.of([entries.tolist()], pool=len(stock)), packed_length=small_llama.LENGTH,
    )  # fmt: skip
    if subject.state is not None:
        optimizer = trainer.create_optimizer()
        optimizer.load_state_dict(torch.load(subject.state(), weights_only=True))
    return trainer


JUNK = ("copy", "random tokens", "very short")
EQUAL = "against a random fifth, equal tokens"
TITLES = {
    "decay_clean": ("the small Llama on a clean pool", "the small Llama, clean pool"),
    "decay_planted": ("the small Llama on a pool with junk", "the small Llama, a quarter junk"),
    "decay_smollm2": ("SmolLM2-135M on a pool with junk", "SmolLM2-135M, a quarter junk"),
}


def page(content: Content) -> Page:
    part, runs = content["settings"]["part"], tables.by_arm(content, "decay")
    planted, losses = part != "decay_clean", tables.losses_of(runs)
    rows = []
    for arm, by_seed in runs.items():
        loss, sd = tables.mean_sd(losses[arm])
        entries = by_seed.values()
        junk = [f"{tables.mean([entry['kinds'] for entry in entries], kind):.0f}" for kind in JUNK if planted]
        rows.append(
            [
                f"`{arm}`", str(len(entries)), tables.number(loss, 4), tables.number(sd, 4),
                f"{tables.mean(entries, 'tokens'):,.0f}", *junk,
                tables.number(tables.mean(entries, "select_seconds"), 2),
            ]
        )  # fmt: skip
    against = [
        part for reference in ("random", "full", "longer") for part in tables.comparisons(losses, [reference])
    ]
    head = ["arm", "seeds", "held-out loss", "sd", "tokens", *(JUNK if planted else ()), "selection s"]
    long, short = TITLES[part]
    paper = (f"Annealing {short}: the paper's objective {EQUAL}", "paper", "random")
    return Page(
        title=f"DiReCT: annealing {long}",
        command=f"python -m benchmarks.direct.decay --pool {part.removeprefix('decay_')}",
        sections=[*_text(content, runs), tables.table(head, rows), *against],
        claims=tables.compared_claims(
            losses,
            ["random"],
            (
                (f"Annealing {short}: DiReCT {EQUAL}", "direct", "random"),
                (f"Annealing {short}: DiReCT before `objective: auto` {EQUAL}", "curvature", "random"),
                # One row is enough: on the other pools it is worse by nearly as much.
                *([paper] if part == "decay_clean" else []),
            ),
        ),
    )


def _text(content: Content, runs: Runs) -> list[str]:
    one = content["settings"]
    if one["part"] == "decay_smollm2":
        start = f"SmolLM2-135M-Instruct from a learning rate of {one['learning_rate']:g}"
        sizes = (one["pool"], one["copies"], one["each_junk"], one["validating"], 3 * one["held_out"])
    else:
        start, sizes = "The small Llama from the end of its stable phase", (1200, 75, 120, 120, 180)
    pool, copies, junk, validating, held_out = sizes
    contents = (
        f", including {copies} copies of one record, {junk} of random tokens and {junk} of one or two words"
    )
    text = (
        f"{start}: {tables.plural(one['steps'], 'step')} of "
        f"{tables.plural(one.get('rows', 2), 'packed row')} of 512 tokens, on {one['fraction']:.0%} of "
        f"{pool:,} records of GSM8K, Dolly and "
        f"commonsense{'' if one['part'] == 'decay_clean' else contents}. {validating} records for "
        f"validation; held-out loss on {held_out} others, nats per token."
    )
    return [text, _smollm2_cost(content, runs)] if "start/smollm2" in content["entries"] else [text]


def _smollm2_cost(content: Content, runs: Runs) -> str:
    """Cost of the decision, for users who do not have the pool's gradients."""
    one, start = content["settings"], content["entries"]["start/smollm2"]
    stock, pool = start["measured"], one["pool"] + one["validating"]
    short = [entry for arm, by_seed in runs.items() if arm != LAST_ARM for entry in by_seed.values()]
    decay_seconds = tables.mean(short, "seconds")
    collecting = stock["seconds"] * pool / stock["samples"]
    text = (
        f"Before the decay the held-out loss is {start['loss']:.4f}. Collecting the gradients of the stock "
        f"from which all pools are drawn ({stock['samples']} records, {stock['tokens']:,} tokens) took "
        f"{stock['seconds']:.0f} s, and a decay of {tables.mean(short, 'tokens'):,.0f} tokens "
        f"{decay_seconds:.0f} s, both with other work on the machine. Deciding on one pool, including its "
        f"{one['validating']} validation samples, therefore costs {collecting / decay_seconds:.1f} times the "
        "decay. The arms with equal tokens are not charged for it."
    )
    if LAST_ARM not in runs:
        return text
    additional = tables.mean(runs[LAST_ARM].values(), "steps") - one["steps"]
    return f"{text} `longer` has {additional:.0f} additional steps for it."


SCRIPT = Script(__doc__, "direct-decay_POOL")
names = [part.removeprefix("decay_") for part in SUBJECTS]
SCRIPT.add_argument("--pool", choices=names, default=names[0], help=f"default: {names[0]}")
SCRIPT.add_argument("--arms", type=names_among(ARMS), help="only these, comma-separated (default: all)")
SCRIPT.add_argument("--seeds", type=int, help="runs of each arm (default: 5; SmolLM2: 3)")


def main() -> None:
    options = SCRIPT.parse_args()
    silence_libraries()
    part = f"decay_{options.pool}"
    subject, path = SUBJECTS[part], options.out or RESULTS / f"direct-{part}.json"
    result = ResultFile(path, "direct", settings(part), threads=torch.get_num_threads())
    if subject.state is None:
        result.once("start/smollm2", partial(at_start, subject))
    chosen = options.arms or subject.arms
    last = [arm for arm in chosen if arm == LAST_ARM]
    for arms in ([arm for arm in chosen if arm != LAST_ARM], last):
        for seed in range(options.seeds or subject.seeds):
            for arm in arms:
                result.once(f"decay/{arm}/{seed}", partial(run, subject, arm, seed))


if __name__ == "__main__":
    main()
