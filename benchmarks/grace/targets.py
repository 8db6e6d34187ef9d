"""Selection towards a target: short fine-tuning of the story model on what rankings pick.

    python -m benchmarks.grace.targets      # two hours on one core

Pools have about 1,000 short records of six sets. Each ranking picks 80 by closeness to 64 target samples,
and its picks are judged by the held-out loss on 100 others. `words` are n-grams of words, `embeddings` mean
cosines, `all three` adds mean cosines of gradients; a sum adds ranks. `grace` is the method's default with a
target, `dsir` and `nearest` are the baselines. Training takes 60 steps of 8 samples for every arm, so all
arms make equally many steps; what deciding costs is not charged here. GSM8K is also a set of the pool, the
other targets are not.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.frame import BUILD, DATA, ROOT, Script
from benchmarks.common.records import COMMONSENSE, as_prompt, chunks, instructions, write_jsonl
from benchmarks.common.tables import Content, Page, compared_claims, comparisons, of_kind, table
from benchmarks.grace.words import TARGETS, TEXTS
from gradwise.data import Collator, Data, Source, load
from gradwise.methods.baselines import Dsir, Nearest
from gradwise.methods.grace import Grace
from gradwise.methods.towards import Direction, Subtasks, percentiles, wording
from gradwise.probing import Probe
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer
from gradwise.signals import Signals, collect

STORIES = Model(name=str(ROOT.parent / "shared" / "models" / "stories260K"))
SIZE, SHORT, PICKS, TARGET, MEASURED = 1000, 260, 80, 64, 100
STEPS, BATCH, RATE = 60, 8, 2e-3
SEEDS = range(5)
NAMES = ("SVAMP", "PIQA", "SIQA", "GSM8K")
CLAIMS = (("GRACE with a target against all of the data at equal steps", "grace", "full"),)


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
        kept = ("instruction", "input", "output")
        sets.append([as_prompt({key: record[key] for key in kept}, name) for record in read])
    return [_short(each, SHORT) for each in (*sets, plays)]


def _short(found: list[dict[str, str]], most: int) -> list[dict[str, str]]:
    return [record for record in found if len(record["prompt"]) + len(record["completion"]) <= most]


def tokenised(name: str, rows: list[dict[str, str]]) -> Any:
    """A data set of records, through a file."""
    path = BUILD / "targets" / f"{name}.jsonl"
    write_jsonl(path, rows)
    data = Data(train=Source(str(path)), max_length=384)
    return load(data, "train", load_tokenizer(STORIES), progress=False).dataset


def measure(name: str, seed: int) -> dict[str, dict[str, float]]:
    """Loss on held-out target samples after training on each arm's picks."""
    rng = np.random.default_rng([seed, 3])
    pools = records()
    drawn = [each[row] for each in pools for row in rng.permutation(len(each))[: SIZE // len(pools)]]
    read = json.loads((DATA / TARGETS[name]).read_text())
    aims = _short([as_prompt(record, name) for record in read], SHORT + 60)
    order = rng.permutation(len(aims))
    parts = {
        "pool": [drawn[row] for row in rng.permutation(len(drawn))],
        "target": [aims[row] for row in order[:TARGET]],
        "measured": [aims[row] for row in order[TARGET : TARGET + MEASURED]],
    }
    samples = {part: tokenised(f"{name}-{seed}-{part}", rows) for part, rows in parts.items()}
    collate = Collator.for_tokenizer(load_tokenizer(STORIES))
    model = load_model(STORIES)
    pool, target = (
        collect(model, samples[part], collate, want=("embedding", "grad"), grad_dim=512, progress=False)
        for part in ("pool", "target")
    )
    picked = rankings(pool, target, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    probe = Probe(model, optimizer, samples["pool"], collate, target=samples["measured"], clip=1.0)
    found = {arm: trained(probe, rows, seed) for arm, rows in picked.items()}
    print(name, seed, found, flush=True)
    return {"arms": found}


def rankings(pool: Signals, target: Signals, seed: int) -> dict[str, np.ndarray]:
    """Picks of every arm."""
    subtasks = Subtasks.of_domains(None, len(target))
    assert pool.texts is not None and target.texts is not None
    scores = {"words": percentiles(wording(pool.texts, target.texts, subtasks, PICKS).score)}
    for arm, signal in (("embeddings", "embedding"), ("gradients", "grad")):
        own, aims = (np.asarray(each.require(signal, arm), dtype=np.float64) for each in (pool, target))
        centre = own.mean(axis=0) if signal == "embedding" else 0.0
        scores[arm] = percentiles(Direction.of(aims - centre, subtasks).cosines(own - centre)[0])
    scores["words + embeddings"] = scores["words"] + scores["embeddings"]
    scores["all three"] = scores["words + embeddings"] + scores["gradients"]
    best = {arm: np.argsort(-values, kind="stable")[:PICKS] for arm, values in scores.items()}
    del best["gradients"]
    selectors = {
        "grace": Grace(count=PICKS),
        "nearest": Nearest(count=PICKS),
        "dsir": Dsir(count=PICKS),
    }
    chosen = {arm: method.select(pool, target=target, seed=seed).indices for arm, method in selectors.items()}
    random = np.random.default_rng([seed, 4]).permutation(len(pool))[:PICKS]
    return {"random": random, "full": np.arange(len(pool)), **best, **chosen}


def trained(probe: Probe, rows: np.ndarray, seed: int) -> float:
    """Mean loss of the held-out samples after the steps, which are taken back."""
    rng = np.random.default_rng([seed, 5])
    passes = -(-STEPS * BATCH // len(rows))
    order = np.concatenate([rng.permutation(rows) for _ in range(passes)])[: STEPS * BATCH]
    with probe.training() as step:
        for number, samples in enumerate(np.split(order, STEPS)):
            step(samples, RATE * min(1.0, (number + 1) / 10) * (1 - number / STEPS))
        return round(float(probe.losses(probe.target).mean()), 4)


def page(content: Content) -> Page:
    losses: dict[str, dict[str, dict[int, float]]] = {name: {} for name in NAMES}
    for key, entry in of_kind(content, "loss").items():
        name, seed = key.split("/")
        for arm, loss in entry["arms"].items():
            losses[name].setdefault(arm, {})[int(seed)] = loss
    sections, claims = [], []
    for name, by_arm in losses.items():
        means = sorted((float(np.mean(list(of.values()))), arm) for arm, of in by_arm.items())
        listed = table(["arm", "mean held-out loss"], [[f"`{arm}`", f"{value:.3f}"] for value, arm in means])
        sections.append("\n\n".join([f"## {name}", listed, *comparisons(by_arm, ["random", "full"])]))
        named = [(f"{text}: {name}", arm, reference) for text, arm, reference in CLAIMS]
        if len(by_arm.get("grace", {})) > 2:  # two seeds have no interval
            claims += compared_claims(by_arm, ["random", "full"], named)
    return Page(sections=sections, claims=claims)


SCRIPT = Script(__doc__, "grace-targets")


def main() -> None:
    _, result = SCRIPT.start()
    Path(BUILD / "targets").mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for name in NAMES:
            result.once(f"loss/{name}/{seed}", partial(measure, name, seed))


if __name__ == "__main__":
    main()
