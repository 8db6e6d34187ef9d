"""Selection towards a target: short fine-tuning of the story model on what methods pick.

    python -m benchmarks.grace.targets      # an hour on one core

Pools have about 1,600 short records of six sets. Each method picks 80 or 160 of them (5 or 10 %) by 64 target
samples, and its picks are judged by the held-out loss on 100 others. Every arm trains for 60 steps of 8
samples. `full` takes all of the pool. `full, longer` gets as many steps more as the scoring and choosing of
`grace` took time for that share of the pool, so that both take equally long. GSM8K is also a set of the pool,
the other targets are not. `less` warms up and scores as in a run, with gradients of 256 numbers at each of
four checkpoints; `tsds` has its defaults.

`trial` is `select: trial` as it is by default: `grace` where the pool is close to the target, and otherwise
whichever of `grace` and `full` wins a trial of 15 steps each, with half of the target samples choosing and
the other half judging; the winner picks by all of them. It picks as many records as the run sees twice (240,
15 % of the pool), whether 5 or 10 % are asked for, so that the tables of all shares have the same numbers of
it. `full, as long as trial` gets as many steps more as the whole of that took time. At 15 % the others pick
as many; there `grace` is left out where it is the trial.

The last tables before that of the unrelated pool have the mean over the four targets, seed by seed, against
the baseline whose mean is lowest.

The unrelated pool holds 1,600 speeches of plays, and the target is SVAMP.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.command_line import Script, names_among
from benchmarks.common.folders import BUILD
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
from benchmarks.grace.target_cases import TARGET, Case, case, speeches
from gradwise.data.texts import Texts
from gradwise.methods.baselines import Dsir, Less, Nearest, Tsds
from gradwise.methods.grace import Grace
from gradwise.methods.trial import SelectTrial
from gradwise.planning.trials import decided
from gradwise.probing import Probe
from gradwise.run.model import load_tokenizer
from gradwise.signals import Signals, collect

PICKS, MORE, TWICE = 80, 160, 240
STEPS, BATCH = 60, 8
SEEDS = range(5)
NAMES = ("SVAMP", "PIQA", "SIQA", "GSM8K")
LONGER, AS_TRIAL = "full, longer", "full, as long as trial"
SHARES = {"5 %": PICKS, "10 %": MORE}
AS_MANY = "15 %"
"""The share that is seen twice, which a trial picks."""
CLAIMS = (
    ("GRACE's 10 % towards a target against all of the data, equal time", "grace", LONGER),
    ("A trial's picks towards a target against all of the data, equal time", "trial", AS_TRIAL),
)
"""Text, arm, reference."""
REFERENCES = ("full", LONGER, AS_TRIAL, "trial")
"""Arms that others are compared with."""
BASELINES = ("random", "full", "nearest", "dsir", "less", "tsds")
ARMS = {"grace": "GRACE", "trial": "a trial"}
"""Those whose mean over the targets is a claim."""
MIDDLE_ALONE = ("middle_embedding",)
"""What GRACE decides by."""
GRAD_DIM = 256
"""Numbers of a gradient for `less`, at each checkpoint."""


def measure(name: str, seed: int, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """Loss on held-out target samples after training on each arm's picks; of an earlier measurement all that
    does not depend on GRACE is kept."""
    one = case(name, seed)
    known = {} if earlier is None else earlier["shares"]
    full = trained(one, np.arange(len(one.pool)), seed) if not known else float("nan")
    scores = signals_of_less(one, seed) if not known else None
    shares = {}
    for share, count in SHARES.items():
        picked = picks(one.pool, one.target, seed, count)
        del picked["full"]
        if scores is not None:
            picked["tsds"] = Tsds(count=count).select(one.pool, target=one.target, seed=seed).indices
            picked["less"] = Less(count=count).select(scores[0], target=scores[1], seed=seed).indices
            arms = {"full": full} | {arm: trained(one, rows, seed) for arm, rows in picked.items()}
        else:
            arms = {arm: loss for arm, loss in known[share]["arms"].items() if arm in BASELINES}
            arms["grace"] = trained(one, picked["grace"], seed)
        longer = steps_for(partial(chosen_by_grace, one, seed, count), one, seed)
        arms[LONGER] = trained(one, np.arange(len(one.pool)), seed, STEPS + longer)
        closeness = Grace(count=count).select(one.pool, target=one.target, seed=seed).details["closeness"]
        shares[share] = {"arms": arms, "longer": longer, "closeness": closeness}
    print(name, seed, shares, flush=True)
    return {"shares": shares}


def with_as_many(name: str, seed: int, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """Losses after training on as many records as a trial picks, chosen by each of the others; of an earlier
    measurement all that does not depend on GRACE is kept."""
    if earlier is not None:
        return {"arms": grace_again(earlier["arms"], lambda: case(name, seed, want=MIDDLE_ALONE), seed)}
    one = case(name, seed)
    picked = as_many(one, seed)
    pool, target = signals_of_less(one, seed)
    picked["less"] = Less(count=TWICE).select(pool, target=target, seed=seed).indices
    entry = {"arms": {arm: trained(one, rows, seed) for arm, rows in picked.items()}}
    print(name, seed, entry, flush=True)
    return entry


def grace_again(arms: dict[str, float], make: Callable[[], Case], seed: int) -> dict[str, float]:
    """The losses with that of GRACE measured again, where it is among them."""
    if "grace" not in arms:
        return arms
    one = make()
    picked = Grace(count=TWICE).select(one.pool, target=one.target, seed=seed)
    return arms | {"grace": trained(one, picked.indices, seed)}


def as_many(one: Case, seed: int) -> dict[str, np.ndarray]:
    """Picks of each method but `less`, as many as the run sees twice; of GRACE where it is not the trial."""
    picked = picks(one.pool, one.target, seed, TWICE)
    del picked["full"]
    closeness = Grace(count=TWICE).select(one.pool, target=one.target, seed=seed).details["closeness"]
    if SelectTrial(count=TWICE).without_trial(closeness) is not None:
        del picked["grace"]
    picked["tsds"] = Tsds(count=TWICE).select(one.pool, target=one.target, seed=seed).indices
    return picked


def with_trial(name: str, seed: int) -> dict[str, Any]:
    """What `select: trial` does by default, and all of the data for as long."""
    entry = by_default(case(name, seed, want=MIDDLE_ALONE), seed)
    print(name, seed, entry, flush=True)
    return entry


def by_default(one: Case, seed: int, times: int = 3) -> dict[str, Any]:
    """What `select: trial` picks for this run, the loss after it, and all of the data for as long; the size
    follows from the run, whatever share of the pool is asked for."""
    whole = np.arange(len(one.pool))
    trial = SelectTrial(count=PICKS).for_run(len(whole), STEPS * BATCH)
    count = trial.size(len(whole))
    chosen = Grace(count=count).select(one.pool, target=one.target, seed=seed)
    longer = steps_for(partial(chosen_by_grace, one, seed, count), one, seed, times)
    entry = {"picks": count, "closeness": chosen.details["closeness"]}
    rows = chosen.indices
    if trial.without_trial(entry["closeness"]) is None:
        held = partial(trial_losses, one, trial, seed, count)
        winner, losses, noise = decided(held())
        took = steps_for(held, one, seed, times=1)
        entry |= {"winner": winner, "losses": losses, "noise": noise, "trial": took}
        rows = whole if winner == "full" else rows
        longer += took
    loss, as_long = trained(one, rows, seed), trained(one, whole, seed, STEPS + longer)
    return entry | {"loss": loss, "longer": longer, "as_long": as_long}


def signals_of_less(one: Case, seed: int) -> tuple[Signals, Signals]:
    """Gradients of the pool and of the target at the checkpoints of LESS's warm-up, as in a run."""
    warm_up, size = Less(count=MORE).warm_up_training, len(one.samples["pool"])
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
    return pool, target


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


def picks(
    pool: Signals, target: Signals, seed: int, count: int, arms: tuple[str, ...] | None = None
) -> dict[str, np.ndarray]:
    """What each arm trains on, or each of some."""
    selectors = {
        "grace": Grace(count=count),
        "nearest": Nearest(count=count),
        "dsir": Dsir(count=count),
    }
    random = np.random.default_rng([seed, 4]).permutation(len(pool))[:count]
    picked = {"random": random, "full": np.arange(len(pool))}
    for arm, method in selectors.items():
        if arms is None or arm in arms:
            picked[arm] = method.select(pool, target=target, seed=seed).indices
    return picked


def chosen_by_grace(one: Case, seed: int, count: int = PICKS) -> None:
    """All that GRACE does before the first step: compare words, score what is left, choose."""
    method, tokenizer = Grace(count=count, target="target"), load_tokenizer(one.start.model)
    size = len(one.samples["pool"])
    texts = {part: Texts(one.samples[part], tokenizer) for part in ("pool", "target")}
    words = {part: Signals(len(one.samples[part]), texts=texts[part]) for part in texts}
    match = method.match_texts(words["pool"], words["target"])
    scored_rows = method.rows_to_score(size, None, seed, match)
    scored, target = (
        collect(one.model, rows, one.collate, want=(method,), progress=False)
        for rows in (one.samples["pool"].select(scored_rows), one.samples["target"])
    )
    state = method.begin(scored, scored_rows=scored_rows, pool=size, seed=seed, target=target, match=match)
    method.pick(state, Signals(size, num_tokens=np.ones(size, np.int32)), seed=seed)


def steps_for(deciding: Callable[[], object], one: Case, seed: int, times: int = 3) -> int:
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


def trial_losses(one: Case, trial: SelectTrial, seed: int, count: int) -> dict[str, np.ndarray]:
    """Losses of the judging half of the target before the trial and after each contender."""
    judged = Probe(
        one.model, one.optimizer, one.samples["pool"], one.collate, target=one.samples["target"], clip=1.0
    )
    mixed = np.random.default_rng([seed, 7]).permutation(TARGET)
    choosing, judges = np.sort(mixed[: TARGET // 2]), np.sort(mixed[TARGET // 2 :])
    picked = picks(one.pool, one.target.take(choosing), seed, count, trial.contenders)
    steps = trial.steps
    runs = [np.split(in_turns(picked[arm], steps, [seed, 8]), steps) for arm in trial.contenders]
    before, after = judged.runs(runs, judged.target[judges])
    return {"before": before, **dict(zip(trial.contenders, after, strict=True))}


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
    shares: dict[str, dict[str, list[dict[str, Any]]]] = {}
    losses: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    defaults, more = defaults_of(content), of_kind(content, "as_many")
    for key, entry in of_kind(content, "loss").items():
        name, seed = key.split("/")
        full = {"full": entry["shares"]["10 %"]["arms"]["full"]}
        by_share = entry["shares"] | {AS_MANY: {"arms": full | more[key]["arms"]}}
        for share, measured in by_share.items():
            shares.setdefault(name, {}).setdefault(share, []).append(measured)
            arms = {**measured["arms"], **arms_of(defaults[name][int(seed)])}
            for arm, loss in arms.items():
                losses.setdefault(name, {}).setdefault(share, {}).setdefault(arm, {})[int(seed)] = loss
    sections, claims = [], []
    for name, by_share in losses.items():
        for share, by_arm in by_share.items():
            of_trial = list(defaults[name].values())
            sections.append(section_on(f"{name}, {share}", by_arm, shares[name][share], of_trial))
    for text, arm, reference in CLAIMS:
        parts = []
        for name, by_share in losses.items():
            if len(by_share["10 %"][arm]) > 2:  # two seeds have no interval
                parts += claims_of(by_share["10 %"], name, arm, reference)
        # One row for each target, from which the overview draws some; GRACE alone has one for all.
        of_trial = [replace(part, text=f"{text}: {part.text}") for part in parts]
        claims += of_trial if arm == "trial" else [joined(text, parts)] if parts else []
    averaged, claim = average(losses)
    sections += averaged
    claims += claim
    if unrelated_entries := of_kind(content, "unrelated"):
        sections.append(_unrelated_section(unrelated_entries))
        claims.append(_unrelated_claim(unrelated_entries))
    return Page(sections=sections, claims=claims)


def defaults_of(content: Content) -> dict[str, dict[int, dict[str, Any]]]:
    """What `select: trial` did by default, by target and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for key, entry in of_kind(content, "default").items():
        name, seed = key.split("/")
        found.setdefault(name, {})[int(seed)] = entry
    return found


def arms_of(default: dict[str, Any]) -> dict[str, float]:
    """The arms of a trial, the same for both shares."""
    return {"trial": default["loss"], AS_TRIAL: default["as_long"]}


def claims_of(by_arm: dict[str, dict[int, float]], text: str, arm: str, reference: str) -> list[Claim]:
    """The claim on an arm."""
    references = [each for each in REFERENCES if each in by_arm]
    return compared_claims(by_arm, references, [(text, arm, reference)])


def section_on(
    title: str,
    by_arm: dict[str, dict[int, float]],
    entries: list[dict[str, Any]],
    defaults: list[dict[str, Any]],
) -> str:
    """The arms of a target and a share, the best first, and how they compare."""
    means = sorted((float(np.mean(list(of.values()))), arm) for arm, of in by_arm.items())
    listed = table(["arm", "mean held-out loss"], [[f"`{arm}`", f"{value:.3f}"] for value, arm in means])
    against = [arm for arm in REFERENCES if arm in by_arm]
    return "\n\n".join([f"## {title}", listed, sentence_on(entries, defaults), *comparisons(by_arm, against)])


def sentence_on(entries: list[dict[str, Any]], defaults: list[dict[str, Any]]) -> str:
    """What the arms of equal time got, and how the trials ended."""
    longer = [entry["longer"] for entry in entries if "longer" in entry]
    near, picked, took = ([entry[name] for entry in defaults] for name in ("closeness", "picks", "longer"))
    assert len(set(picked)) == 1  # pools are of one size
    sentence = (
        f"The closeness is {min(near):.2f} to {max(near):.2f}. `trial` selects {picked[0]} records, and "
        f"takes as long as {min(took)} to {max(took)} steps. "
    )
    if longer:
        sentence = f"`{LONGER}` takes {min(longer)} to {max(longer)} steps more. " + sentence
    held = [entry for entry in defaults if "losses" in entry]
    if not held:
        return sentence + "No trial is held: GRACE selects."
    won = ", ".join(f"`{entry['winner']}`" for entry in held)
    return f"{sentence}A trial is held in {len(held)} of {len(defaults)} seeds, and won by {won}."


def average(
    losses: dict[str, dict[str, dict[str, dict[int, float]]]], start: str = "Towards"
) -> tuple[list[str], list[Claim]]:
    """Each arm's mean over the targets, seed by seed, against the baseline whose mean is lowest;
    `start` begins the text of the claim."""
    sections: list[str] = []
    claims: list[Claim] = []
    for share in (*SHARES, AS_MANY):
        by_target = [shares[share] for shares in losses.values() if share in shares]
        if not by_target:
            continue
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
        pairs = [
            (f"{share}, {text}, against {best}:", arm, best) for arm, text in ARMS.items() if arm in means
        ]
        claims += compared_claims(means, [best], pairs)
    text = f"{start} four targets on average, against the baseline that is best on average, equal steps"
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


SCRIPT.add_argument(
    "--again", action="store_true", help="measure GRACE, its time and trials again, and keep the baselines"
)


def main() -> None:
    options, result = SCRIPT.start()
    Path(BUILD / "targets").mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for name in options.targets:
            if options.again:
                key = f"loss/{name}/{seed}"
                result.add(key, measure(name, seed, result[key]))
            result.once(f"loss/{name}/{seed}", partial(measure, name, seed))
            if options.again:
                result.add(f"default/{name}/{seed}", with_trial(name, seed))
            result.once(f"default/{name}/{seed}", partial(with_trial, name, seed))
            if options.again:
                key = f"as_many/{name}/{seed}"
                result.add(key, with_as_many(name, seed, result[key]))
            result.once(f"as_many/{name}/{seed}", partial(with_as_many, name, seed))
    for seed in SEEDS:
        if options.again:
            result.add(f"unrelated/{seed}", unrelated(seed))
        result.once(f"unrelated/{seed}", partial(unrelated, seed))


if __name__ == "__main__":
    main()
