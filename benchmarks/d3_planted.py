"""Pools in which the order matters by construction: what D3 finds of it, and what that is worth.

A Llama of 0.1 M weights learns tables from samples of eight times (key, question, answer), of which only the
answers count. It has seen keys, questions and answers before, drawn at random. Two domains of 640 samples, in
40 units each; one pass, 80 steps; the target is validation data.

- conflict: `first` answers the question by one table, `last` by another; the target is the latter. What is
  learned last is forgotten least.
- prerequisite: `first` tells the class of every key, `last` answers by the class of half the keys; the
  target asks about the other half. Nothing says the classes of those but `first`.
- unrelated: as the prerequisite, but the classes that `first` tells have nothing to do with the answers:
  what is left of the order's worth where nothing is presupposed.

Arms differ in the order alone; to try both orders at the start takes as many steps again as the run has, and
is allowed to. `oracle` is all of `first`, then all of `last`; `opposite` the reverse.
"""

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import gradwise as gw
from gradwise.data import Collator
from gradwise.methods.baselines import Shuffle
from gradwise.methods.d3 import D3, InfluenceGraph, Units

KINDS = ("conflict", "prerequisite", "unrelated")
RUNS = ("conflict", "prerequisite")
"""Kinds that whole runs are made of."""
STATES = (
    *((kind, edges, 40, 16) for kind in RUNS for edges in ("curvature", "lookahead")),
    *((kind, "orders", 40, 4) for kind in RUNS),
)
"""Kind, edges, steps on both domains mixed beforehand, probe samples; runs have measured at their start."""
HORIZONS = (1, 5, 10, 20)
"""Steps on each domain, where both orders are tried."""
SAMPLES, BATCH, RATE = 640, 16, 3e-3
"""Of each domain; of a unit; Adam's learning rate."""
PAIRS, KEYS, CLASSES, ANSWERS = 8, 32, 4, 8
"""Keys of a sample; in all; classes and answers."""
ASK, TELL, KEY = 1, 2, 3
CLASS, ANSWER = KEY + KEYS, KEY + KEYS + CLASSES
"""The first token of each kind; 0 is padding."""
SEEN_STEPS = 100
"""Steps on random answers, from which every run starts."""
AIMS = 32
"""Samples of the target."""

FREE: dict[str, Any] = {"window": None, "balance": None}
"""Lets domains stand in blocks."""
D3_ARMS: dict[str, dict[str, Any]] = {
    "d3": {},
    "d3, free": FREE,
    "d3, free, early 1": {**FREE, "early": 1.0},
    "d3, free, lookahead": {**FREE, "edges": "lookahead"},
    "d3, free, orders": {**FREE, "edges": "orders", "overhead": 1.1},
}
ARMS = ("random", "oracle", "opposite", "last alone", *D3_ARMS)
"""`last alone` trains on the second domain only, as often: what it learns without the first."""


# ---- tables ------------------------------------------------------------------------------------------------


class Planted:
    """The samples of a kind and a seed: (n, 24) tokens of each domain and of the target."""

    def __init__(self, kind: str, seed: int) -> None:
        self.rng = rng = np.random.default_rng([KINDS.index(kind), seed])
        keys = np.arange(KEYS)
        if kind == "conflict":
            before = rng.integers(ANSWERS, size=KEYS)
            after = (before + 1 + rng.integers(ANSWERS - 1, size=KEYS)) % ANSWERS
            self.first = self._rows(SAMPLES, keys, ASK, ANSWER + before)
            self.last = self._rows(SAMPLES, keys, ASK, ANSWER + after)
            self.target = self._rows(AIMS, keys, ASK, ANSWER + after)
            return
        classes = rng.permutation(KEYS) % CLASSES
        told = rng.permutation(classes) if kind == "unrelated" else classes
        answers = ANSWER + rng.permutation(ANSWERS)[:CLASSES][classes]
        by_class = np.argsort(classes, kind="stable")
        self.first = self._rows(SAMPLES, keys, TELL, CLASS + told)
        self.last = self._rows(SAMPLES, by_class[::2], ASK, answers)
        self.target = self._rows(AIMS, by_class[1::2], ASK, answers)

    def _rows(self, count: int, keys: np.ndarray, question: int, answers: np.ndarray) -> np.ndarray:
        drawn = np.stack([self.rng.permutation(keys)[:PAIRS] for _ in range(count)])
        return _together(drawn, np.full_like(drawn, question), answers[drawn])

    def pool(self) -> Dataset:
        """Both domains, the first one first."""
        domain = ["first"] * SAMPLES + ["last"] * SAMPLES
        return Dataset.from_dict({**columns(np.concatenate([self.first, self.last])), "domain": domain})


def _together(keys: np.ndarray, questions: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(n, 3 PAIRS) tokens."""
    return np.stack([KEY + keys, questions, answers], axis=2).reshape(len(keys), -1)


def columns(rows: np.ndarray) -> dict[str, Any]:
    """As a causal language model is trained: the answers alone count."""
    return {"input_ids": rows.tolist(), "labels": _labels(rows).tolist()}


def _labels(rows: np.ndarray) -> np.ndarray:
    labels = np.full_like(rows, -100)
    labels[:, 2::3] = rows[:, 2::3]
    return labels


def started(seed: int) -> Any:
    """A model that knows which tokens are keys, questions and answers, and nothing else."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=ANSWER + ANSWERS, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    rng = np.random.default_rng([seed, 1])
    shape = (BATCH, PAIRS)
    for _ in range(SEEN_STEPS):
        question = rng.choice([ASK, TELL], shape)
        told, answered = CLASS + rng.integers(CLASSES, size=shape), ANSWER + rng.integers(ANSWERS, size=shape)
        answer = np.where(question == TELL, told, answered)
        loss(model, _together(rng.integers(KEYS, size=shape), question, answer)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def loss(model: Any, rows: np.ndarray) -> torch.Tensor:
    """Of the answers."""
    tokens = torch.tensor(rows)
    logits = model(input_ids=tokens, use_cache=False).logits[:, 1::3]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 2::3].flatten())


# ---- whole runs --------------------------------------------------------------------------------------------


def run(kind: str, arm: str, seed: int) -> dict[str, Any]:
    """One pass in an arm's order: the target's loss at the end, and the graphs that D3 measured."""
    planted = Planted(kind, seed)
    folder = Path(tempfile.mkdtemp())
    try:
        trainer = _trainer(planted, arm, seed, folder)
        trainer.train()
        with torch.no_grad():
            found: dict[str, Any] = {
                name: float(loss(trainer.model.eval(), getattr(planted, name)))
                for name in ("target", "first", "last")
            }
        graphs = sorted((folder / "plan").glob("graph-*.parquet"), key=_step_of)
        if graphs:
            found["graphs"] = [told for path in graphs if (told := _read(path))]
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _trainer(planted: Planted, arm: str, seed: int, folder: Path) -> Any:
    arguments = TrainingArguments(
        str(folder), seed=seed, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, save_strategy="no", logging_steps=40, report_to=[],
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    pool, aim = planted.pool(), Dataset.from_dict(columns(planted.target))
    decided: dict[str, Any]
    if arm in ("oracle", "opposite", "last alone"):
        decided = {"plan": gw.Plan.of([_planned(arm, seed).tolist()], pool=len(pool))}
    else:
        order = Shuffle() if arm == "random" else D3(units="domains", target="validation", **D3_ARMS[arm])
        decided = {"recipe": gw.Recipe(order=order, seed=seed)}
    return gw.Trainer(started(seed), arguments, Collator(0), pool, eval_dataset=aim, **decided)


def _planned(arm: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 2])
    first, last = (rng.permutation(SAMPLES) + start for start in (0, SAMPLES))
    return np.concatenate({"oracle": [first, last], "opposite": [last, first], "last alone": [last]}[arm])


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("graph-"))


def _read(path: Path) -> dict[str, Any] | None:
    """Of a graph of two nodes: how much is gained by `first` before `last`, and what the method makes of it;
    None where one of them is all that is left."""
    rows = {row["source"]: row for row in parquet.read_table(path).to_pylist()}
    first, last = rows.get("first"), rows.get("last")
    if first is None or last is None:
        return None
    return {
        "step": _step_of(path),
        "difference": first["weight"] - last["weight"],
        "error": float(first["noise"]),
        "precedes": "first" if first["precedes"] else "last" if last["precedes"] else None,
        "influence": [first["source_influence"], last["source_influence"]],
    }


# ---- single states -----------------------------------------------------------------------------------------


def direction(kind: str, edges: str, seed: int, *, trained: int = 0, probes: int = 4) -> dict[str, Any]:
    """The graph at one state, without a run: at the start, or after some steps on both domains mixed."""
    planted, model = Planted(kind, seed), started(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    rows = np.concatenate([planted.first, planted.last])
    rng = np.random.default_rng([seed, 3])
    for _ in range(trained):
        loss(model, rows[rng.choice(len(rows), BATCH, replace=False)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    graph = measured(planted, model, optimizer, edges, seed, probes)
    first, last = graph.names.index("first"), graph.names.index("last")
    before = graph.precedences(D3(units="domains").threshold)
    return {
        "difference": float(graph.weight[first, last] - graph.weight[last, first]),
        "error": float(graph.noise[first, last]),
        "precedes": "first" if before[first, last] else "last" if before[last, first] else None,
        "influence": [float(graph.influence[first]), float(graph.influence[last])],
    }


def tried(kind: str, seed: int) -> dict[str, Any]:
    """What the target's loss gains by so many steps on `first` before as many on `last`, over the other way
    round, both really made from the start: how far ahead one has to look."""
    planted, start = Planted(kind, seed), started(seed)
    gains = {}
    for steps in HORIZONS:
        parts = [rows[: steps * BATCH].reshape(steps, BATCH, -1) for rows in (planted.first, planted.last)]
        ends = [_after(start, np.concatenate(order), planted.target) for order in (parts, parts[::-1])]
        gains[str(steps)] = ends[1] - ends[0]
    return {"gains": gains}


def _after(start: Any, batches: np.ndarray, target: np.ndarray) -> float:
    model = copy.deepcopy(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for rows in batches:
        loss(model, rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return float(loss(model, target))


def measured(
    planted: Planted, model: Any, optimizer: Any, edges: str, seed: int, probes: int = 4
) -> InfluenceGraph:
    """D3's graph of the two domains at the model's weights."""
    pool = planted.pool()
    probe = gw.Probe(
        model, optimizer, pool.remove_columns("domain"), Collator(0), target=_rows(planted.target)
    )
    units = Units.by_group(np.arange(len(pool)), np.array(pool["domain"]), BATCH)
    return D3(units="domains", probes=probes).measured(
        probe, units, edges=edges, rng=np.random.default_rng([seed, 4])
    )


def _rows(tokens: np.ndarray) -> list[dict[str, Any]]:
    return Dataset.from_dict(columns(tokens)).to_list()
