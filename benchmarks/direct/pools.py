"""The pools that DiReCT's annealing phase selects from, for the small Llama and for SmolLM2.

A stock has records of GSM8K, Dolly and commonsense; no question repeats, and none is held out. Every seed
draws its own pool and its own validation samples from the stock. A planted pool also gets copies of one
record, records of random tokens, and records of one or two words, 26 % together. All gradients are collected
once, at the weights that the decay starts from; copies have the gradient of their original. Every token is
learned, as in the small Llama's pre-training: with completions only, of some eight tokens, training at the
stable learning rate diverged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import small_llama, smollm2
from benchmarks.common.folders import BUILD, build_folder
from benchmarks.common.records import (
    DEAL_SEED,
    Record,
    as_prompt,
    held_out_records,
    shuffled,
    unused_records,
    write_jsonl,
)
from gradwise.data import Collator, Data, Source, load
from gradwise.errors import SignalError
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer
from gradwise.signals import Signals, collect

LENGTH = 192
KINDS = ("distinct", "copy", "random tokens", "very short")


@dataclass(frozen=True)
class Stock:
    """A model, the records that its pools are drawn from, and the sizes of the pools."""

    folder: Path
    """Folder that holds `stock.jsonl`, `check.jsonl` and the signals."""
    model: Callable[[], Path]
    """Returns the weights that the decay starts from, and makes them if absent."""
    records: dict[str, int]
    """By instruction set."""
    not_trained_on: int
    """Records reserved for validation; every seed uses half of them."""
    junk: int
    """Records of random tokens in the stock, and the same number of one or two words."""
    pool: int
    copies: int
    each_junk: int
    held_out: int
    """Held-out records from each instruction set."""

    @property
    def clean(self) -> int:
        """Records before the junk."""
        return sum(self.records.values())

    @property
    def validating(self) -> int:
        """Validation samples of a seed."""
        return self.not_trained_on // 2


SMALL_LLAMA = Stock(
    folder=BUILD / "direct", model=lambda: small_llama.build() / "stable",
    records={"gsm8k": 800, "dolly": 180, "commonsense": 800}, not_trained_on=240, junk=240, pool=1200,
    copies=75, each_junk=120, held_out=60,
)  # fmt: skip
SMOLLM2 = Stock(
    folder=BUILD / "direct-smollm2", model=smollm2.model_folder,
    records={"gsm8k": 150, "dolly": 100, "commonsense": 150}, not_trained_on=100, junk=56, pool=280,
    copies=18, each_junk=28, held_out=20,
)  # fmt: skip
"""A quarter of the other's size: collecting gradients and training take forty times as long per token."""


@dataclass(frozen=True)
class Draw:
    """One seed's pool, as rows of the stock."""

    rows: np.ndarray
    """(pool,) into the stock, copies repeated."""
    kinds: np.ndarray
    """(pool,) indices into `KINDS`."""
    validation: np.ndarray
    """(validating,) into the stock."""


def build(stock: Stock) -> Path:
    """The folder with `stock.jsonl` and `check.jsonl`."""
    return build_folder(stock.folder, partial(_write, stock))


def model_settings(stock: Stock) -> Model:
    """The weights that the decay starts from."""
    return Model(name=str(stock.model()))


def dataset(stock: Stock, part: str) -> Any:
    """Tokenised records of the `stock`, or of the `check` set, in the file's order."""
    path = str(build(stock) / f"{part}.jsonl")
    data = Data(train=Source(path), max_length=LENGTH, duplicates="keep", loss_on="all")
    return load(data, "train", load_tokenizer(model_settings(stock)), progress=False).dataset


def signals(stock: Stock, grad_dim: int = 1024, seed: int = 0) -> Signals:
    """Losses and projected gradients of the stock; stored in `build`."""
    path = build(stock) / f"signals-{grad_dim}-{seed}"
    try:
        return Signals.open(path)
    except SignalError:
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
    reserved = mixed[mixed < stock.not_trained_on][: stock.validating]
    validation, free = np.sort(reserved), mixed[mixed >= stock.not_trained_on]
    if not planted:
        return Draw(free[: stock.pool], np.zeros(stock.pool, dtype=int), validation)
    noise = stock.clean + rng.permutation(stock.junk)[: stock.each_junk]
    short = stock.clean + stock.junk + rng.permutation(stock.junk)[: stock.each_junk]
    distinct = free[: stock.pool - stock.copies - 2 * stock.each_junk]
    parts = [distinct, np.repeat(distinct[0], stock.copies), noise, short]
    order = rng.permutation(stock.pool)
    kinds = np.repeat(np.arange(4), [len(part) for part in parts])
    return Draw(np.concatenate(parts)[order], kinds[order], validation)


def clean_records(stock: Stock) -> tuple[list[Record], list[Record]]:
    """The records of the stock without junk, and the held-out records."""
    records = [
        as_prompt(r, name) for name, count in stock.records.items() for r in unused_records(name, count)
    ]
    return shuffled(records), held_out_records("check", stock.held_out)


def _write(stock: Stock, folder: Path) -> None:
    records, check = clean_records(stock)
    write_jsonl(folder / "check.jsonl", check)
    write_jsonl(folder / "stock.jsonl", [*records, *_junk(stock, records)])


def _junk(stock: Stock, records: list[Record]) -> list[Record]:
    """Records of random tokens, then records of one or two words."""
    rng, tokenizer = np.random.default_rng(DEAL_SEED), load_tokenizer(model_settings(stock))
    noise, short = [], []
    for number in range(stock.junk):
        ids = rng.integers(10, len(tokenizer), (2, 40))
        prompt, completion = (tokenizer.decode(row) for row in ids)
        noise.append({"prompt": prompt, "completion": completion, "domain": records[number]["domain"]})
    for number in range(stock.junk):
        words = records[-1 - number]["completion"].split()
        start = int(rng.integers(max(1, len(words) - 1)))
        text = " ".join(words[start : start + 1 + number % 2])
        short.append({"prompt": "", "completion": text, "domain": records[-1 - number]["domain"]})
    return [*noise, *short]
