"""Selection towards a target: short fine-tuning of the story model on what methods pick.

    python -m benchmarks.grace.targets      # an hour on one core

Pools have about 1,600 short records of six sets. Each method picks 80 or 160 of them (5 or 10 %) by 64 target
samples, and its picks are judged by the held-out loss on 100 others. Every arm trains for 60 steps of 8
samples. `full` takes all of the pool. `full, longer` gets as many steps more as the scoring and choosing of
`grace` took time for that share of the pool, so that both take equally long. `trial` tries `grace`, `dsir`,
`random` and `full` for 15 steps each, with half of the target samples choosing and the other half judging,
and is what the winner picks by all of them; its own cost is not charged to `full, longer`. GSM8K is also a
set of the pool, the other targets are not. `less` warms up and scores as in a run, with gradients of 256
numbers at each of four checkpoints; `tsds` has its defaults. Both are measured at 10 % alone.

The last tables before that of the unrelated pool have the mean over the four targets, seed by seed, against
the baseline whose mean is lowest.

The unrelated pool holds 1,600 speeches of plays, and the target is SVAMP.
"""

import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common.command_line import Script, names_among
from benchmarks.common.folders import BUILD, DATA, ROOT
from benchmarks.common.records import COMMONSENSE, Record, as_prompt, chunks, instructions, write_jsonl
from benchmarks.common.tables import (
    Claim,
    Content,
    Page,
    compared_claims,
    comparisons,
    joined,
    of_kind,
    table,
)
from benchmarks.grace.words import TARGETS, TEXTS
from gradwise.data import Collator, Data, Source, load
from gradwise.data.texts import Texts
from gradwise.methods.baselines import Dsir, Less, Nearest, Tsds
from gradwise.methods.grace import Grace
from gradwise.probing import Probe
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer
from gradwise.signals import Signals, collect


class Start(NamedTuple):
    """A model before training, and its learning rate."""

    model: Model
    rate: float


STORIES = Start(Model(name=str(ROOT.parent / "shared" / "models" / "stories260K")), 2e-3)
SIZE, SHORT, PICKS, MORE, TARGET, MEASURED = 1600, 260, 80, 160, 64, 100
STEPS, BATCH = 60, 8
TRIAL = 15
"""Steps of each contender."""
SEEDS = range(5)
NAMES = ("SVAMP", "PIQA", "SIQA", "GSM8K")
CONTENDERS = ("grace", "dsir", "random", "full")
LONGER = "full, longer"
TRIED = ("PIQA", "SIQA")
"""Targets that no selection of the pool is certain to suit; on SVAMP every trial was won by GRACE."""
CLAIMS = (
    ("10 %", "GRACE's 10 % towards a target against all of the data, equal time", "grace", LONGER, NAMES),
    ("5 %", "A trial's 5 % towards a target against all of the data, equal steps", "trial", "full", TRIED),
)
"""Share, text, arm, reference, targets."""
BASELINES = ("random", "full", "nearest", "dsir", "less", "tsds")
REFERENCES = ("random", "full", LONGER, "grace")
GRAD_DIM = 256
"""Numbers of a gradient for `less`, at each checkpoint."""


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


def case(name: str, seed: int, start: Start = STORIES, pools: list[list[Record]] | None = None) -> Case:
    """The data of a target and a seed; by default the pool is mixed from six sets."""
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
        collect(model, samples[part], collate, want=("embedding",), progress=False)
        for part in ("pool", "target")
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=start.rate, weight_decay=0.0)
    probe = Probe(model, optimizer, samples["pool"], collate, target=samples["measured"], clip=1.0)
    return Case(start, samples, model, optimizer, collate, pool, target, probe)


def measure(name: str, seed: int) -> dict[str, Any]:
    """Loss on held-out target samples after training on each arm's picks."""
    one = case(name, seed)
    picked = picks(one.pool, one.target, seed, PICKS)
    longer = steps_for(partial(chosen_by_grace, one, seed), one, seed)
    arm_losses = {arm: trained(one, rows, seed) for arm, rows in picked.items()}
    more = {arm: rows for arm, rows in picks(one.pool, one.target, seed, MORE).items() if arm != "full"}
    of_more = {arm: trained(one, rows, seed) for arm, rows in more.items()} | {"full": arm_losses["full"]}
    arm_losses[LONGER] = trained(one, picked["full"], seed, STEPS + longer)
    judged = Probe(
        one.model, one.optimizer, one.samples["pool"], one.collate, target=one.samples["target"], clip=1.0
    )
    losses = trial_losses(judged, one.pool, one.target, seed)
    winner = min(losses, key=lambda arm: losses[arm])
    print(name, seed, arm_losses, longer, losses, flush=True)
    shares = {"5 %": arm_losses | {"trial": arm_losses[winner]}, "10 %": of_more}
    return {"arms": shares, "longer": longer, "trial": losses}


def tenth(name: str, seed: int) -> dict[str, Any]:
    """Loss of what is measured at 10 % alone: `full, longer`, and training on the picks of `less` and
    `tsds`."""
    one = case(name, seed)
    longer = steps_for(partial(chosen_by_grace, one, seed, MORE), one, seed)
    full = np.arange(len(one.pool))
    chosen = {
        "tsds": Tsds(count=MORE).select(one.pool, target=one.target, seed=seed).indices,
        "less": chosen_by_less(one, seed),
    }
    arms = {arm: trained(one, rows, seed) for arm, rows in chosen.items()}
    return {"arms": arms | {LONGER: trained(one, full, seed, STEPS + longer)}, "longer": longer}


def chosen_by_less(one: Case, seed: int) -> np.ndarray:
    """What LESS picks, with gradients at the checkpoints of a warm-up, as in a run."""
    method = Less(count=MORE)
    warm_up, size = method.warm_up_training, len(one.samples["pool"])
    rows = np.random.default_rng([seed, 9]).permutation(size)[: round(warm_up.fraction * size)]
    steps = -(-len(rows) // BATCH)
    grads_by_part: dict[str, list[np.ndarray]] = {"pool": [], "target": []}
    with one.probe.training() as step:
        for epoch in range(warm_up.epochs):
            order = np.random.default_rng([seed, 10, epoch]).permutation(rows)
            for number, batch in enumerate(np.array_split(order, steps)):
                step(batch, one.start.rate * (1 - (epoch * steps + number) / (steps * warm_up.epochs)))
            for part, grads in grads_by_part.items():
                moments = one.optimizer if part == "pool" else None
                grads.append(
                    collect(
                        one.model, one.samples[part], one.collate, want=("grad",), grad_dim=GRAD_DIM,
                        precondition=moments, progress=False,
                    ).require("grad", "less")
                )  # fmt: skip
    pool, target = (
        Signals(len(grads[0]), grad=np.concatenate(grads, axis=1)) for grads in grads_by_part.values()
    )
    return method.select(pool, target=target, seed=seed).indices


def unrelated(seed: int) -> dict[str, Any]:
    """Picks from a pool in which nothing resembles the target, and what gradwise says of it."""
    one = case("SVAMP", seed, pools=speeches())
    chosen = picks(one.pool, one.target, seed, MORE)
    method = Grace(count=MORE, target="target")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        closeness = method.select(one.pool, target=one.target, seed=seed).details["closeness"]
    warned = any("holds little that resembles the target" in str(warning.message) for warning in caught)
    arms = {arm: trained(one, rows, seed) for arm, rows in chosen.items()}
    untrained = round(float(one.probe.losses(one.probe.target).mean()), 4)
    return {"arms": arms, "closeness": closeness, "said": warned, "untrained": untrained}


def picks(pool: Signals, target: Signals, seed: int, count: int) -> dict[str, np.ndarray]:
    """What each arm trains on."""
    selectors = {
        "grace": Grace(count=count),
        "nearest": Nearest(count=count),
        "dsir": Dsir(count=count),
    }
    chosen = {arm: method.select(pool, target=target, seed=seed).indices for arm, method in selectors.items()}
    random = np.random.default_rng([seed, 4]).permutation(len(pool))[:count]
    return {"random": random, "full": np.arange(len(pool)), **chosen}


def chosen_by_grace(one: Case, seed: int, count: int = PICKS) -> None:
    """All that GRACE does before the first step: compare words, score what is left, choose."""
    method, tokenizer = Grace(count=count, target="target"), load_tokenizer(one.start.model)
    size = len(one.samples["pool"])
    texts = {part: Texts(one.samples[part], tokenizer) for part in ("pool", "target")}
    words = {part: Signals(len(one.samples[part]), texts=texts[part]) for part in texts}
    match = method.match_texts(words["pool"], words["target"])
    scored_rows = method.rows_to_score(size, None, seed, match)
    scored, target = (
        collect(one.model, rows, one.collate, want=("embedding",), progress=False)
        for rows in (one.samples["pool"].select(scored_rows), one.samples["target"])
    )
    state = method.begin(scored, scored_rows=scored_rows, pool=size, seed=seed, target=target, match=match)
    method.pick(state, Signals(size, num_tokens=np.ones(size, np.int32)), seed=seed)


def steps_for(deciding: Callable[[], None], one: Case, seed: int, times: int = 3) -> int:
    """Training steps that take as long as deciding; the median of several measurements, side by side."""
    rows = np.random.default_rng([seed, 6]).permutation(len(one.probe.dataset))[: 10 * BATCH]
    deciding()  # compiles
    ratios = []
    for _ in range(times):
        start = time.perf_counter()
        deciding()
        took = time.perf_counter() - start
        with one.probe.training() as step:
            start = time.perf_counter()
            for samples in np.split(rows, 10):
                step(samples, one.start.rate)
            ratios.append(10 * took / (time.perf_counter() - start))
    return round(float(np.median(ratios)))


def trial_losses(probe: Probe, pool: Signals, target: Signals, seed: int) -> dict[str, float]:
    """Loss of the judging half of the target after each contender's trial."""
    mixed = np.random.default_rng([seed, 7]).permutation(TARGET)
    choosing, judges = np.sort(mixed[: TARGET // 2]), np.sort(mixed[TARGET // 2 :])
    picked = picks(pool, target.take(choosing), seed, PICKS)
    runs = [np.split(in_turns(picked[arm], TRIAL, [seed, 8]), TRIAL) for arm in CONTENDERS]
    _, after = probe.runs(runs, probe.target[judges])
    return {arm: round(float(losses.mean()), 4) for arm, losses in zip(CONTENDERS, after, strict=True)}


def in_turns(rows: np.ndarray, steps: int, seed: list[int]) -> np.ndarray:
    """Samples of all steps, in epochs of random order."""
    rng, epochs = np.random.default_rng(seed), -(-steps * BATCH // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(epochs)])[: steps * BATCH]


def trained(one: Case, rows: np.ndarray, seed: int, steps: int = STEPS) -> float:
    """Mean loss of the held-out samples after the steps, which are taken back."""
    with one.probe.training() as step:
        for number, samples in enumerate(np.split(in_turns(rows, steps, [seed, 5]), steps)):
            step(samples, one.start.rate * min(1.0, (number + 1) / 10) * (1 - number / steps))
        return round(float(one.probe.losses(one.probe.target).mean()), 4)


def page(content: Content) -> Page:
    losses: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    longer: dict[str, dict[str, list[int]]] = {name: {"5 %": [], "10 %": []} for name in NAMES}
    won: dict[str, list[str]] = {name: [] for name in NAMES}
    for key, entry in of_kind(content, "loss").items():
        name, seed = key.split("/")
        longer[name]["5 %"].append(entry["longer"])
        won[name].append(min(entry["trial"], key=lambda arm: entry["trial"][arm]))
        for share, arms in entry["arms"].items():
            for arm, loss in arms.items():
                if (share, arm) == ("10 %", LONGER):
                    continue  # charged for the decision of 5 %; `tenth` has its own
                losses.setdefault(name, {}).setdefault(share, {}).setdefault(arm, {})[int(seed)] = loss
    for key, entry in of_kind(content, "tenth").items():
        name, seed = key.split("/")
        longer[name]["10 %"].append(entry["longer"])
        for arm, loss in entry["arms"].items():
            losses[name]["10 %"].setdefault(arm, {})[int(seed)] = loss
    sections, claims = [], []
    for name, shares in losses.items():
        for share, by_arm in shares.items():
            sentence, more = "", longer[name][share]
            if more:
                sentence = f"`{LONGER}` takes {min(more)} to {max(more)} steps more."
            if "trial" in by_arm:
                sentence += f" The trial was won by {', '.join(f'`{arm}`' for arm in won[name])}."
            means = sorted((float(np.mean(list(of.values()))), arm) for arm, of in by_arm.items())
            rows = [[f"`{arm}`", f"{value:.3f}"] for value, arm in means]
            listed = table(["arm", "mean held-out loss"], rows)
            compared = comparisons(by_arm, list(REFERENCES))
            sections.append("\n\n".join([f"## {name}, {share}", listed, sentence, *compared]))
        for share, text, arm, reference, names in CLAIMS:
            by_arm = shares[share]
            if name in names and reference in by_arm and len(by_arm[arm]) > 2:  # two seeds have no interval
                pairs = [(f"{text}: {name}", arm, reference)]
                claims += compared_claims(shares[share], list(REFERENCES), pairs)
    averaged, claim = _average(losses)
    sections += averaged
    claims += claim
    if unrelated_entries := of_kind(content, "unrelated"):
        sections.append(_unrelated_section(unrelated_entries))
        claims.append(_unrelated_claim(unrelated_entries))
    return Page(sections=sections, claims=claims)


def _average(losses: dict[str, dict[str, dict[str, dict[int, float]]]]) -> tuple[list[str], list[Claim]]:
    """Each arm's mean over the targets, seed by seed, against the baseline whose mean is lowest."""
    sections, claims = [], []
    for share in ("5 %", "10 %"):
        by_target = [shares[share] for shares in losses.values() if share in shares]
        arms = [arm for arm in by_target[0] if all(arm in each for each in by_target)]
        means: dict[str, dict[int, float]] = {}
        for arm in arms:
            seeds = set.intersection(*(set(each[arm]) for each in by_target))
            means[arm] = {seed: float(np.mean([each[arm][seed] for each in by_target])) for seed in seeds}
        overall = {arm: float(np.mean(list(of.values()))) for arm, of in means.items()}
        best = min((arm for arm in overall if arm in BASELINES), key=lambda arm: overall[arm])
        rows = [
            [f"`{arm}`", f"{value:.3f}"] for arm, value in sorted(overall.items(), key=lambda each: each[1])
        ]
        listed = table(["arm", "mean held-out loss"], rows)
        sections.append(
            "\n\n".join([f"## All {len(by_target)} targets, {share}", listed, *comparisons(means, [best])])
        )
        claims += compared_claims(means, [best], [(f"{share}, against {best}:", "grace", best)])
    text = "GRACE towards four targets on average, against the baseline that is best on average, equal steps"
    return sections, [joined(text, claims)]


def _unrelated_losses(entries: dict[str, dict[str, Any]]) -> dict[str, dict[int, float]]:
    arms = next(iter(entries.values()))["arms"]
    return {arm: {int(seed): entry["arms"][arm] for seed, entry in entries.items()} for arm in arms}


def _unrelated_section(by_key: dict[str, dict[str, Any]]) -> str:
    by_arm = _unrelated_losses(by_key)
    means = sorted((float(np.mean(list(of.values()))), arm) for arm, of in by_arm.items())
    entries = list(by_key.values())
    closeness = [entry["closeness"] for entry in entries]
    sentence = (
        f"The closest samples by words are {min(closeness):.0%} to {max(closeness):.0%} of the way from "
        "random ones to the target's own, and gradwise says that the pool holds little that resembles the "
        f"target in {sum(entry['said'] for entry in entries)} of {len(entries)} seeds. Before training the "
        f"loss is {np.mean([entry['untrained'] for entry in entries]):.3f}."
    )
    return "\n\n".join(
        [
            "## A pool without anything relevant: SVAMP from speeches, 10 %",
            table(["arm", "mean held-out loss"], [[f"`{arm}`", f"{value:.3f}"] for value, arm in means]),
            sentence,
            *comparisons(by_arm, ["random", "full"]),
        ]
    )


def _unrelated_claim(entries: dict[str, dict[str, Any]]) -> Claim:
    pairs = [("GRACE's 10 % of a pool unrelated to the target, against a random 10 %", "grace", "random")]
    (claim,) = compared_claims(_unrelated_losses(entries), ["random", "full"], pairs)
    return claim


SCRIPT = Script(__doc__, "grace-targets")
SCRIPT.add_argument(
    "--targets", type=names_among(NAMES), default=NAMES, help="comma-separated (default: all)"
)


def main() -> None:
    options, result = SCRIPT.start()
    Path(BUILD / "targets").mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for name in options.targets:
            result.once(f"loss/{name}/{seed}", partial(measure, name, seed))
    for seed in SEEDS:
        result.once(f"unrelated/{seed}", partial(unrelated, seed))
    for seed in SEEDS:
        for name in options.targets:
            result.once(f"tenth/{name}/{seed}", partial(tenth, name, seed))


if __name__ == "__main__":
    main()
