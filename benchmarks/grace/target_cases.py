"""Pools and targets for measuring selection towards a target: records of six sets, and a model to train."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common.folders import BUILD, DATA, ROOT
from benchmarks.common.records import COMMONSENSE, Record, as_prompt, chunks, instructions, write_jsonl
from benchmarks.grace.words import TARGETS, TEXTS
from gradwise.data import Collator, Data, Source, load
from gradwise.probing import Probe
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer
from gradwise.signals import Signals, collect


class Start(NamedTuple):
    """A model before training, and its learning rate."""

    model: Model
    rate: float


STORIES = Start(Model(name=str(ROOT.parent / "shared" / "models" / "stories260K")), 2e-3)
SIZE, SHORT, TARGET, MEASURED = 1600, 260, 64, 100


def records() -> list[list[dict[str, str]]]:
    """Short records of six sets."""
    plays = [
        {"prompt": "", "completion": record["text"], "domain": "texts"}
        for name in ("plays", "encyclopedia")
        for record in chunks((DATA / TEXTS[name]).read_text(encoding="utf-8"))
    ]
    sets = [[as_prompt(record, name) for record in instructions(name)] for name in ("gsm8k", "dolly")]
    for name in COMMONSENSE[:3]:
        read = json.loads((DATA / "commonsense" / "train" / f"{name}.json").read_text())
        columns = ("instruction", "input", "output")
        sets.append([as_prompt({key: record[key] for key in columns}, name) for record in read])
    return [_short(each, SHORT) for each in (*sets, plays)]


def _short(texts: list[dict[str, str]], most: int) -> list[dict[str, str]]:
    return [record for record in texts if len(record["prompt"]) + len(record["completion"]) <= most]


def tokenised(name: str, rows: list[dict[str, str]], model: Model) -> Any:
    """A data set of records, through a file."""
    path = BUILD / "targets" / f"{name}.jsonl"
    write_jsonl(path, rows)
    data = Data(train=Source(str(path)), max_length=384)
    return load(data, "train", load_tokenizer(model), progress=False).dataset


def speeches() -> list[list[Record]]:
    """Short speeches of plays, in which nothing resembles a sum."""
    lines = (DATA / TEXTS["plays"]).read_text(encoding="utf-8").split("\n\n")
    read = [{"prompt": "", "completion": line.strip(), "domain": "texts"} for line in lines if line.strip()]
    return [_short(read, SHORT)]


class Case(NamedTuple):
    """A pool and a target of one seed, and the model before training."""

    start: Start
    samples: dict[str, Any]
    """Data sets: the pool, the target samples, and those that measure."""
    model: Any
    optimizer: torch.optim.Optimizer
    collate: Collator
    pool: Signals
    target: Signals
    probe: Probe
    """Measures by the held-out target samples."""


def case(
    name: str,
    seed: int,
    start: Start = STORIES,
    pools: list[list[Record]] | None = None,
    want: tuple[Any, ...] = ("embedding", "middle_embedding"),
) -> Case:
    """The data of a target and a seed; by default the pool is mixed from six sets. The baselines want the
    embedding."""
    rng = np.random.default_rng([seed, 3])
    kind = Path(start.model.name).name if pools is None else "unrelated"
    pools = records() if pools is None else pools
    drawn = [each[row] for each in pools for row in rng.permutation(len(each))[: SIZE // len(pools)]]
    read = json.loads((DATA / TARGETS[name]).read_text())
    aims = _short([as_prompt(record, name) for record in read], SHORT + 60)
    order = rng.permutation(len(aims))
    parts = {
        "pool": [drawn[row] for row in rng.permutation(len(drawn))],
        "target": [aims[row] for row in order[:TARGET]],
        "measured": [aims[row] for row in order[TARGET : TARGET + MEASURED]],
    }
    samples = {
        part: tokenised(f"{kind}-{name}-{seed}-{part}", rows, start.model) for part, rows in parts.items()
    }
    collate = Collator.for_tokenizer(load_tokenizer(start.model))
    model = load_model(start.model)
    pool, target = (
        collect(model, samples[part], collate, want=want, progress=False) for part in ("pool", "target")
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=start.rate, weight_decay=0.0)
    probe = Probe(model, optimizer, samples["pool"], collate, target=samples["measured"], clip=1.0)
    return Case(start, samples, model, optimizer, collate, pool, target, probe)
