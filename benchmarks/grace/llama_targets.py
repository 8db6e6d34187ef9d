"""Selection towards a target on the small Llama: short fine-tuning on what methods pick.

    python -m benchmarks.grace.llama_targets --jobs 2     # four hours on two cores
    python -m benchmarks.grace.llama_targets --jobs 2 --again default,grace,as_many     # an hour

Pools, targets and steps are those of `benchmarks.grace.targets`, for the small Llama
(`benchmarks/common/small_llama.py`, 8.9 M parameters). Each method picks 80 or 160 records (5 or 10 %) of a
pool of about 1,600 by 64 target samples, and its picks are judged by the held-out loss on 100 others after 60
steps of 8 samples. `trial` picks as many as the run sees twice (15 %), whichever share is asked for; `less`
was not measured with 15 %. `full, as long as trial` gets as many steps more as all that `trial` does before
the first step took time. The tables of equal time have seven seeds of these two, the others five: the last
two were added when GSM8K was lower in each of the first five and its interval held 0. The last tables have
the mean over the four targets. The learning rate is that of full training in compare-small_llama; it was not
tuned here.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import small_llama
from benchmarks.common.command_line import Script, names_among
from benchmarks.common.folders import BUILD
from benchmarks.common.own_process import in_own_process
from benchmarks.common.tables import (
    Claim,
    Content,
    Page,
    joined,
    of_kind,
)
from benchmarks.grace.target_cases import Start, case
from benchmarks.grace.targets import (
    AS_MANY,
    AS_TRIAL,
    MIDDLE_ALONE,
    MORE,
    NAMES,
    PICKS,
    SEEDS,
    SHARES,
    arms_of,
    as_many,
    average,
    by_default,
    claims_of,
    defaults_of,
    grace_again,
    picks,
    section_on,
    signals_of_less,
    trained,
)  # fmt: skip
from gradwise.methods.baselines import Less, Tsds
from gradwise.methods.grace import Grace
from gradwise.recipe import Model

MEASUREMENTS = {
    "loss": "measure",
    "tsds": "by_transport",
    "five": "with_fewer",
    "less": "by_less",
    "default": "with_trial",
    "grace": "by_grace",
    "as_many": "with_as_many",
}
"""Kinds of entries, and the functions that measure them; in this order."""
AGAIN = ("default", "grace", "as_many")
"""Those that depend on GRACE."""
MORE_SEEDS = range(5, 7)
"""Seeds that only the trial and all of the data for as long have, on every target. They were added after the
first five: GSM8K was lower in each, and its interval held 0."""
LLAMA = Start(Model(name=str(small_llama.FOLDER / "annealed")), 3e-3)


def measure(name: str, seed: int) -> dict[str, Any]:
    """Loss on held-out target samples after training on what each baseline picks."""
    one = case(name, seed, LLAMA)
    picked = picks(one.pool, one.target, seed, MORE)
    arms = {arm: trained(one, rows, seed) for arm, rows in picked.items() if arm != "grace"}
    untrained = round(float(one.probe.losses(one.probe.target).mean()), 4)
    return {"arms": arms, "untrained": untrained}


def by_grace(name: str, seed: int) -> dict[str, Any]:
    """The same for GRACE at both shares."""
    one = case(name, seed, LLAMA, want=MIDDLE_ALONE)
    shares = {}
    for share, count in SHARES.items():
        picked = Grace(count=count).select(one.pool, target=one.target, seed=seed)
        shares[share] = {
            "grace": trained(one, picked.indices, seed),
            "closeness": picked.details["closeness"],
        }
    return {"shares": shares}


def with_trial(name: str, seed: int) -> dict[str, Any]:
    """What `select: trial` does by default, and all of the data for as long."""
    return by_default(case(name, seed, LLAMA, want=MIDDLE_ALONE), seed)


def with_as_many(name: str, seed: int, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """Losses after training on as many records as a trial picks, chosen by each of the others but `less`; of
    an earlier measurement all that does not depend on GRACE is kept."""
    if earlier is not None:
        return {
            "arms": grace_again(earlier["arms"], partial(case, name, seed, LLAMA, want=MIDDLE_ALONE), seed)
        }
    one = case(name, seed, LLAMA)
    return {"arms": {arm: trained(one, rows, seed) for arm, rows in as_many(one, seed).items()}}


def by_transport(name: str, seed: int) -> dict[str, Any]:
    """Loss on held-out target samples after training on what `tsds` picks."""
    one = case(name, seed, LLAMA)
    rows = Tsds(count=MORE).select(one.pool, target=one.target, seed=seed).indices
    return {"arms": {"tsds": trained(one, rows, seed)}}


def with_fewer(name: str, seed: int) -> dict[str, Any]:
    """Loss on held-out target samples after training on 5 % of the pool, as each baseline picks them."""
    one = case(name, seed, LLAMA)
    picked = picks(one.pool, one.target, seed, PICKS)
    picked["tsds"] = Tsds(count=PICKS).select(one.pool, target=one.target, seed=seed).indices
    # Those of GRACE are another kind of entry, and all of the data are the same for any share.
    return {
        "arms": {
            arm: trained(one, rows, seed) for arm, rows in picked.items() if arm not in ("full", "grace")
        }
    }


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
    losses, defaults = _losses(content), defaults_of(content)
    sections: list[str] = []
    claims: list[Claim] = []
    for name, by_share in losses.items():
        by_seed = defaults[name]
        of_trial = [by_seed[seed] for seed in SEEDS]
        for share, by_arm in by_share.items():
            sections.append(section_on(f"{name}, {share}", by_arm, [], of_trial))
        equal = {
            arm: {seed: arms_of(entry)[arm] for seed, entry in by_seed.items()} for arm in ("trial", AS_TRIAL)
        }
        sections.append(section_on(f"{name}, equal time", equal, [], list(by_seed.values())))
        claims += claims_of(equal, name, "trial", AS_TRIAL)
    averaged, average_claims = average(losses, "Small Llama: towards")
    text = "Small Llama: a trial's picks towards a target against all of the data, equal time"
    return Page(sections=[*sections, *averaged], claims=[joined(text, claims), *average_claims])


def _losses(content: Content) -> dict[str, dict[str, dict[str, dict[int, float]]]]:
    """Losses by target, share, arm and seed."""
    losses: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    few, transport, less = (of_kind(content, kind) for kind in ("five", "tsds", "less"))
    more = of_kind(content, "as_many")
    complete = [name for name in NAMES if all(f"{name}/{seed}" in more for seed in SEEDS)]
    grace, defaults = of_kind(content, "grace"), defaults_of(content)
    for key, entry in of_kind(content, "loss").items():
        name, seed = key.split("/")
        by_share = {
            "5 %": {"full": entry["arms"]["full"], **few[key]["arms"]},
            "10 %": entry["arms"] | transport[key]["arms"],
        }
        for share, arms in by_share.items():
            arms["less"] = less[key]["shares"][share]
            if key in grace:
                arms["grace"] = grace[key]["shares"][share]["grace"]
        if name in complete:
            by_share[AS_MANY] = {"full": entry["arms"]["full"], **more[key]["arms"]}
        for share, arms in by_share.items():
            arms |= arms_of(defaults[name][int(seed)])
            for arm, loss in arms.items():
                losses.setdefault(name, {}).setdefault(share, {}).setdefault(arm, {})[int(seed)] = loss
    return {name: losses[name] for name in NAMES if name in losses}


SCRIPT = Script(__doc__, "grace-llama_targets")
SCRIPT.add_argument(
    "--targets", type=names_among(NAMES), default=NAMES, help="comma-separated (default: all)"
)
SCRIPT.add_argument("--jobs", type=int, default=1, help="cases at a time")
SCRIPT.add_argument(
    "--again",
    type=names_among(AGAIN),
    default=(),
    help=f"comma-separated kinds to measure again: {', '.join(AGAIN)}",
)


def main() -> None:
    options, result = SCRIPT.start()
    small_llama.build()
    Path(BUILD / "targets").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for kind, function in MEASUREMENTS.items():
            seeds = (*SEEDS, *MORE_SEEDS) if kind == "default" else SEEDS
            cases = [(name, seed) for seed in seeds for name in options.targets]
            again = kind in options.again
            known = {each: f"{kind}/{each[0]}/{each[1]}" in result for each in cases}
            missing = [each for each in cases if again or not known[each]]
            arguments = [
                (*each, result[f"{kind}/{each[0]}/{each[1]}"]) if kind == "as_many" and known[each] else each
                for each in missing
            ]
            outcomes = pool.map(lambda each, function=function: _run(function, *each), arguments)
            for (name, seed), entry in zip(missing, outcomes, strict=True):
                result.add(f"{kind}/{name}/{seed}", entry)
                print(name, seed, entry, flush=True)


def _run(function: str, *given: Any) -> Any:
    """What a function of this module returns in a process of its own, on one thread."""
    path = f"benchmarks.grace.llama_targets:{function}"
    return in_own_process(path, *given, environment={"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
