"""What DiReCT's benchmarks on real text choose from, for the small Llama at the end of its stable phase.

The stock is GSM8K, Dolly and commonsense, no question twice and none that is held out. Every seed draws its
own pool of 1,200 from it, its own validation samples, and for the planted pool its own 75 copies of one
record, 120 records of random tokens and 120 of one or two words (31 % together). All gradients are measured
once, at the weights that the decay starts from; the copies have their original's. As in the pre-training,
every token is learned: with completions alone, some of eight tokens, the stable learning rate diverged.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grace_pools
import numpy as np
import small_llama
from frame import ROOT
from small_data import DEAL_SEED, INSTRUCTIONS, deal, instructions

from gradwise.data import Collator, Data, Source, load
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer
from gradwise.signals import Signals, collect

FOLDER = ROOT / "build" / "direct"
STOCK = {"gsm8k": 800, "dolly": 180, "commonsense": 800}
VALIDATION = 240
"""Records of the stock that are not trained on: half of them validate in each seed."""
JUNK = 240
"""Records of random tokens in the stock, and as many of one or two words."""
POOL, COPIES, EACH_JUNK, VALIDATING = 1200, 75, 120, 120
LENGTH = 192
KINDS = ("distinct", "copy", "random tokens", "very short")


@dataclass(frozen=True)
class Draw:
    """One seed's pool, by rows of the stock."""

    rows: np.ndarray
    """(1200,) into the stock, copies repeated."""
    kinds: np.ndarray
    """(1200,) places in `KINDS`."""
    validation: np.ndarray
    """(120,) into the stock."""


def made(folder: Path = FOLDER) -> Path:
    """The folder with `stock.jsonl` and `check.jsonl`."""
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial)
        partial.rename(folder)
    return folder


def model_settings() -> Model:
    """The small Llama at the end of its stable phase."""
    return Model(name=str(small_llama.made() / "stable"))


def dataset(part: str) -> Any:
    """Tokenised records of the `stock`, or of the `check` set, in the file's order."""
    data = Data(
        train=Source(str(made() / f"{part}.jsonl")), max_length=LENGTH, duplicates="keep", loss_on="all"
    )
    return load(data, "train", load_tokenizer(model_settings()), progress=False).dataset


def signals(grad_dim: int = 1024, seed: int = 0) -> Signals:
    """Losses and projected gradients of the stock; kept in `build`."""
    path = made() / f"signals-{grad_dim}-{seed}"
    if not (path / "manifest.json").exists() or not _complete(path):
        tokenizer = load_tokenizer(model_settings())
        collect(
            load_model(model_settings()), dataset("stock"), Collator.for_tokenizer(tokenizer),
            want=("loss", "grad"), grad_dim=grad_dim, seed=seed, store=path, progress=False,
        )  # fmt: skip
    return Signals.open(path)


def draw(planted: bool, seed: int) -> Draw:
    """The pool of a seed."""
    clean = sum(STOCK.values())
    rng = np.random.default_rng([DEAL_SEED, seed])
    mixed = rng.permutation(clean)
    validation, free = np.sort(mixed[mixed < VALIDATION][:VALIDATING]), mixed[mixed >= VALIDATION]
    if not planted:
        return Draw(free[:POOL], np.zeros(POOL, dtype=int), validation)
    noise = clean + rng.permutation(JUNK)[:EACH_JUNK]
    short = clean + JUNK + rng.permutation(JUNK)[:EACH_JUNK]
    distinct = free[: POOL - COPIES - 2 * EACH_JUNK]
    parts = [distinct, np.repeat(distinct[0], COPIES), noise, short]
    order = rng.permutation(POOL)
    kinds = np.repeat(np.arange(4), [len(part) for part in parts])
    return Draw(np.concatenate(parts)[order], kinds[order], validation)


def _complete(path: Path) -> bool:
    try:
        Signals.open(path)
    except Exception:
        return False
    return True


def clean_records() -> tuple[list[grace_pools.Record], list[grace_pools.Record]]:
    """What the clean pool is drawn from, and what is held out."""
    dealt = {name: deal(instructions(name), parts) for name, parts in INSTRUCTIONS.items()}
    check = [grace_pools.told(r, name) for name, d in dealt.items() for r in d["check"]]
    stock = [
        grace_pools.told(r, name)
        for name, count in STOCK.items()
        for r in grace_pools.free_records(name, INSTRUCTIONS[name], count)
    ]
    return grace_pools.shuffled(stock), check


def _write(folder: Path) -> None:
    stock, check = clean_records()
    grace_pools.write(folder / "check.jsonl", check)
    grace_pools.write(folder / "stock.jsonl", [*stock, *_junk(stock)])


def _junk(stock: list[grace_pools.Record]) -> list[grace_pools.Record]:
    """Records of random tokens, then records of one or two words."""
    rng, tokenizer = np.random.default_rng(DEAL_SEED), load_tokenizer(model_settings())
    noise = []
    for number in range(JUNK):
        ids = rng.integers(10, len(tokenizer), (2, 40))
        prompt, completion = (tokenizer.decode(row) for row in ids)
        noise.append({"prompt": prompt, "completion": completion, "domain": stock[number]["domain"]})
    short = []
    for number in range(JUNK):
        words = stock[-1 - number]["completion"].split()
        start = int(rng.integers(max(1, len(words) - 1)))
        some = " ".join(words[start : start + 1 + number % 2])
        short.append({"prompt": "", "completion": some, "domain": stock[-1 - number]["domain"]})
    return [*noise, *short]
