"""What DiReCT's benchmarks on real text choose from: for the small Llama and for SmolLM2.

A stock is GSM8K, Dolly and commonsense, no question twice and none that is held out. Every seed draws its
own pool from it, its own validation samples, and for a planted pool its own copies of one record, records of
random tokens and records of one or two words (26 % together). All gradients are measured once, at the weights
that the decay starts from; the copies have their original's. Every token is learned, as in the small Llama's
pre-training: with completions alone, some of eight tokens, the stable learning rate diverged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import compare_tasks
import grace_pools
import numpy as np
import small_llama
from frame import ROOT, made_whole
from small_data import DEAL_SEED, INSTRUCTIONS, deal, instructions

from gradwise.data import Collator, Data, Source, load
from gradwise.errors import SignalError
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer
from gradwise.signals import Signals, collect

LENGTH = 192
KINDS = ("distinct", "copy", "random tokens", "very short")


@dataclass(frozen=True)
class Stock:
    """A model, the records its pools are drawn from, and how large the pools are."""

    folder: Path
    """With `stock.jsonl`, `check.jsonl` and the signals."""
    model: Callable[[], Path]
    """Makes the weights that the decay starts from, where they are not there."""
    records: dict[str, int]
    """By instruction set."""
    not_trained_on: int
    """Records of the stock: half of them validate in each seed."""
    junk: int
    """Records of random tokens in the stock, and as many of one or two words."""
    pool: int
    copies: int
    each_junk: int
    held_out: int
    """Of each instruction set."""

    @property
    def clean(self) -> int:
        """Records before the junk."""
        return sum(self.records.values())

    @property
    def validating(self) -> int:
        return self.not_trained_on // 2


SMALL_LLAMA = Stock(
    folder=ROOT / "build" / "direct",
    model=lambda: small_llama.made() / "stable",
    records={"gsm8k": 800, "dolly": 180, "commonsense": 800},
    not_trained_on=240,
    junk=240,
    pool=1200,
    copies=75,
    each_junk=120,
    held_out=60,
)
SMOLLM2 = Stock(
    folder=ROOT / "build" / "direct-smollm2",
    model=compare_tasks.smollm2_model,
    records={"gsm8k": 150, "dolly": 100, "commonsense": 150},
    not_trained_on=100,
    junk=56,
    pool=280,
    copies=18,
    each_junk=28,
    held_out=20,
)
"""A quarter of the other's size: measuring and training take forty times as long a token."""


@dataclass(frozen=True)
class Draw:
    """One seed's pool, by rows of the stock."""

    rows: np.ndarray
    """(pool,) into the stock, copies repeated."""
    kinds: np.ndarray
    """(pool,) places in `KINDS`."""
    validation: np.ndarray
    """(validating,) into the stock."""


def made(stock: Stock) -> Path:
    """The folder with `stock.jsonl` and `check.jsonl`."""
    return made_whole(stock.folder, partial(_write, stock))


def model_settings(stock: Stock) -> Model:
    """The weights that the decay starts from."""
    return Model(name=str(stock.model()))


def dataset(stock: Stock, part: str) -> Any:
    """Tokenised records of the `stock`, or of the `check` set, in the file's order."""
    path = str(made(stock) / f"{part}.jsonl")
    data = Data(train=Source(path), max_length=LENGTH, duplicates="keep", loss_on="all")
    return load(data, "train", load_tokenizer(model_settings(stock)), progress=False).dataset


def signals(stock: Stock, grad_dim: int = 1024, seed: int = 0) -> Signals:
    """Losses and projected gradients of the stock; kept in `build`."""
    path = made(stock) / f"signals-{grad_dim}-{seed}"
    if not _complete(path):
        tokenizer = load_tokenizer(model_settings(stock))
        collect(
            load_model(model_settings(stock)), dataset(stock, "stock"), Collator.for_tokenizer(tokenizer),
            want=("loss", "grad"), grad_dim=grad_dim, seed=seed, store=path, progress=False,
        )  # fmt: skip
    return Signals.open(path)


def draw(stock: Stock, planted: bool, seed: int) -> Draw:
    """The pool of a seed."""
    rng = np.random.default_rng([DEAL_SEED, seed])
    mixed = rng.permutation(stock.clean)
    validating = mixed[mixed < stock.not_trained_on][: stock.validating]
    validation, free = np.sort(validating), mixed[mixed >= stock.not_trained_on]
    if not planted:
        return Draw(free[: stock.pool], np.zeros(stock.pool, dtype=int), validation)
    noise = stock.clean + rng.permutation(stock.junk)[: stock.each_junk]
    short = stock.clean + stock.junk + rng.permutation(stock.junk)[: stock.each_junk]
    distinct = free[: stock.pool - stock.copies - 2 * stock.each_junk]
    parts = [distinct, np.repeat(distinct[0], stock.copies), noise, short]
    order = rng.permutation(stock.pool)
    kinds = np.repeat(np.arange(4), [len(part) for part in parts])
    return Draw(np.concatenate(parts)[order], kinds[order], validation)


def _complete(path: Path) -> bool:
    try:
        Signals.open(path)
    except SignalError:
        return False
    return True


def clean_records(stock: Stock) -> tuple[list[grace_pools.Record], list[grace_pools.Record]]:
    """What the clean pool is drawn from, and what is held out."""
    dealt = {name: deal(instructions(name), parts) for name, parts in INSTRUCTIONS.items()}
    check = [grace_pools.told(r, name) for name, d in dealt.items() for r in d["check"][: stock.held_out]]
    records = [
        grace_pools.told(r, name)
        for name, count in stock.records.items()
        for r in grace_pools.free_records(name, INSTRUCTIONS[name], count)
    ]
    return grace_pools.shuffled(records), check


def _write(stock: Stock, folder: Path) -> None:
    records, check = clean_records(stock)
    grace_pools.write(folder / "check.jsonl", check)
    grace_pools.write(folder / "stock.jsonl", [*records, *_junk(stock, records)])


def _junk(stock: Stock, records: list[grace_pools.Record]) -> list[grace_pools.Record]:
    """Records of random tokens, then records of one or two words."""
    rng, tokenizer = np.random.default_rng(DEAL_SEED), load_tokenizer(model_settings(stock))
    noise = []
    for number in range(stock.junk):
        ids = rng.integers(10, len(tokenizer), (2, 40))
        prompt, completion = (tokenizer.decode(row) for row in ids)
        noise.append({"prompt": prompt, "completion": completion, "domain": records[number]["domain"]})
    short = []
    for number in range(stock.junk):
        words = records[-1 - number]["completion"].split()
        start = int(rng.integers(max(1, len(words) - 1)))
        some = " ".join(words[start : start + 1 + number % 2])
        short.append({"prompt": "", "completion": some, "domain": records[-1 - number]["domain"]})
    return [*noise, *short]
