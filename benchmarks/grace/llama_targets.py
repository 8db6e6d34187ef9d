"""Selection towards a target on the small Llama: short fine-tuning on what methods pick.

    python -m benchmarks.grace.llama_targets --jobs 2     # an hour on two cores

Pools, targets and steps are those of `benchmarks.grace.targets`, for the small Llama
(`benchmarks/common/small_llama.py`, 8.9 M parameters). Each method picks 160 records (10 %) of a pool of
about 1,600 by 64 target samples, and its picks are judged by the held-out loss on 100 others after 60 steps
of 8 samples. `full, longer` gets as many steps more as the scoring and choosing of `grace` took time, and
`full, as long as trial` the time of `trial`. The last table has the mean over the four targets. The learning
rate is that of full training in compare-small_llama; it was not tuned here.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import small_llama
from benchmarks.common.command_line import Script, names_among
from benchmarks.common.folders import BUILD
from benchmarks.common.own_process import in_own_process
from benchmarks.common.result_file import ResultFile
from benchmarks.common.tables import (
    Claim,
    Content,
    Page,
    comparisons,
    joined,
    of_kind,
    table,
)
from benchmarks.grace.targets import (
    AS_TRIAL,
    LONGER,
    MORE,
    NAMES,
    PICKS,
    SEEDS,
    SHARES,
    STEPS,
    Start,
    average,
    case,
    chosen_by_grace,
    claims_of,
    distinct_arms,
    picks,
    sentence_on,
    signals_of_less,
    steps_for,
    trained,
    trial_losses,
    tried,
)  # fmt: skip
from gradwise.methods.baselines import Less, Tsds
from gradwise.methods.grace import Grace
from gradwise.methods.trial import SelectTrial
from gradwise.planning.trials import decided
from gradwise.recipe import Model

MEASUREMENTS = {
    "loss": "measure",
    "tsds": "by_transport",
    "trial": "try_contenders",
    "five": "with_fewer",
    "less": "by_less",
}
"""Kinds of entries, and the functions that measure them; in this order."""
LLAMA = Start(Model(name=str(small_llama.FOLDER / "annealed")), 3e-3)


def measure(name: str, seed: int) -> dict[str, Any]:
    """Loss on held-out target samples after training on each arm's picks."""
    one = case(name, seed, LLAMA)
    picked = picks(one.pool, one.target, seed, MORE)
    # Measured once, as it takes as long as a run.
    longer = steps_for(partial(chosen_by_grace, one, seed, MORE), one, seed, times=1)
    arms = {arm: trained(one, rows, seed) for arm, rows in picked.items()}
    arms[LONGER] = trained(one, picked["full"], seed, STEPS + longer)
    untrained = round(float(one.probe.losses(one.probe.target).mean()), 4)
    return {"arms": arms, "longer": longer, "untrained": untrained}


def try_contenders(name: str, seed: int, arms: dict[str, float], longer: int) -> dict[str, Any]:
    """What `select: trial` follows, beside the losses of arms that were measured."""
    measured = dict(arms)
    how = tried(case(name, seed, LLAMA), seed, MORE, measured, longer)
    return how | {"arms": {arm: measured[arm] for arm in ("trial", AS_TRIAL)}}


def by_transport(name: str, seed: int) -> dict[str, Any]:
    """Loss on held-out target samples after training on what `tsds` picks."""
    one = case(name, seed, LLAMA)
    rows = Tsds(count=MORE).select(one.pool, target=one.target, seed=seed).indices
    return {"arms": {"tsds": trained(one, rows, seed)}}


def with_fewer(name: str, seed: int) -> dict[str, Any]:
    """Loss on held-out target samples after training on 5 % of the pool, as each arm picks them."""
    one = case(name, seed, LLAMA)
    picked = picks(one.pool, one.target, seed, PICKS)
    del picked["full"]  # the same as at 10 %
    picked["tsds"] = Tsds(count=PICKS).select(one.pool, target=one.target, seed=seed).indices
    arms = {arm: trained(one, rows, seed) for arm, rows in picked.items()}
    trial = SelectTrial(count=PICKS)
    closeness = Grace(count=PICKS).select(one.pool, target=one.target, seed=seed).details["closeness"]
    if (settled := trial.without_trial(closeness)) is not None:
        return {"arms": arms, "closeness": closeness, "winner": settled.winner}
    winner, losses, noise = decided(trial_losses(one, trial, seed, PICKS))
    return {"arms": arms, "closeness": closeness, "winner": winner, "losses": losses, "noise": noise}


def by_less(name: str, seed: int) -> dict[str, Any]:
    """Loss on held-out target samples after training on what `less` picks, at both shares."""
    one = case(name, seed, LLAMA)
    pool, target = signals_of_less(one, seed)
    shares = {
        share: trained(one, Less(count=count).select(pool, target=target, seed=seed).indices, seed)
        for share, count in SHARES.items()
    }
    return {"shares": shares}


def page(content: Content) -> Page:
    losses: dict[str, dict[str, dict[int, float]]] = {}
    by_target: dict[str, list[dict[str, Any]]] = {}
    trials, transport = of_kind(content, "trial"), of_kind(content, "tsds")
    for key, entry in of_kind(content, "loss").items():
        name, seed = key.split("/")
        by_target.setdefault(name, []).append(entry | trials[key])
        for arm, loss in (entry["arms"] | transport[key]["arms"] | trials[key]["arms"]).items():
            losses.setdefault(name, {}).setdefault(arm, {})[int(seed)] = loss
    sections: list[str] = []
    claims: list[Claim] = []
    for name in (name for name in NAMES if name in losses):
        by_arm, entries = losses[name], by_target[name]
        means = sorted((float(np.mean(list(of.values()))), arm) for arm, of in by_arm.items())
        untrained = np.mean([entry["untrained"] for entry in entries])
        sentence = f"Before training the loss is {untrained:.3f}. {sentence_on(entries)}"
        listed = table(["arm", "mean held-out loss"], [[f"`{arm}`", f"{value:.3f}"] for value, arm in means])
        compared = comparisons(*distinct_arms(by_arm))
        sections.append("\n\n".join([f"## {name}", listed, sentence, *compared]))
        claims += claims_of(by_arm, name, "grace", LONGER)
        if by_arm["trial"] != by_arm["grace"]:
            claims += claims_of(by_arm, f"{name}, a trial", "trial", AS_TRIAL)
    averaged, average_claims = average(
        {name: {"10 %": losses[name]} for name in losses}, "Small Llama: towards"
    )
    text = (
        "Small Llama: GRACE's 10 % towards a target, and a trial's where one was held, against all of the "
        "data, equal time"
    )
    return Page(sections=[*sections, *averaged], claims=[joined(text, claims), *average_claims])


SCRIPT = Script(__doc__, "grace-llama_targets")
SCRIPT.add_argument(
    "--targets", type=names_among(NAMES), default=NAMES, help="comma-separated (default: all)"
)
SCRIPT.add_argument("--jobs", type=int, default=1, help="cases at a time")


def main() -> None:
    options, result = SCRIPT.start()
    small_llama.build()
    Path(BUILD / "targets").mkdir(parents=True, exist_ok=True)
    cases = [(name, seed) for seed in SEEDS for name in options.targets]
    with ThreadPoolExecutor(options.jobs) as pool:
        for kind, function in MEASUREMENTS.items():
            missing = [(name, seed) for name, seed in cases if f"{kind}/{name}/{seed}" not in result]
            given = [(*pair, *_earlier(result, kind, pair)) for pair in missing]
            outcomes = pool.map(lambda each, function=function: _run(function, *each), given)
            for (name, seed), entry in zip(missing, outcomes, strict=True):
                result.add(f"{kind}/{name}/{seed}", entry)
                print(name, seed, entry, flush=True)


def _earlier(result: ResultFile, kind: str, pair: tuple[str, int]) -> tuple[Any, ...]:
    """What a measurement needs of an earlier one: a trial the losses of its contenders."""
    if kind != "trial":
        return ()
    entry = result["loss/{}/{}".format(*pair)]
    return entry["arms"], entry["longer"]


def _run(function: str, *given: Any) -> Any:
    """What a function of this module returns in a process of its own, on one thread."""
    path = f"benchmarks.grace.llama_targets:{function}"
    return in_own_process(path, *given, environment={"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
