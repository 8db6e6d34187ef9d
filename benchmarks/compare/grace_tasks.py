"""What `run` compares of GRACE: selections from clean and dirty pools, kinds of importance."""

from collections.abc import Callable
from typing import Any

from benchmarks.common import small_llama, smollm2
from benchmarks.compare.task import Claims, Comparison, Task, arm, both_budgets
from benchmarks.grace import pools as grace_pools

RANDOM, FULL = ("random",), ("full",)
TUNED = {"random": (3e-4, 1e-3)}
GRACE = {name: name for name in ("random", "full", "grace")}
GRACE_FEW = {**GRACE, "grace_half": arm("grace_half", "grace", "grace/half")}
GRACE_ALL = {
    **GRACE_FEW,
    **{
        name: arm(name, "grace", f"grace/{name.removeprefix('grace_')}")
        for name in ("grace_static", "grace_full_refresh")
    },
    **{name: name for name in ("loss_top", "length_top", "grad_norm_top", "k_center")},
}
GRACE_PROXY = {"grace_proxy": arm("grace_proxy", "grace", "grace/proxy")}
IMPORTANCE = ("loss", "alignment", "norm", "head_norm", "coverage")
TRADE_OFFS = ("alignment_80", "alignment_90", "head_length_90")
"""Kinds of importance that do not pick garbage, with more weight on coverage."""
POOLS = {
    "clean": "1,200 records of GSM8K, Dolly and commonsense without repeats",
    "dirty": (
        "1,200 records: 600 distinct ones of GSM8K, Dolly and commonsense, 480 copies of 24 of these, 60 of "
        "random characters and 60 snippets of two words"
    ),
}
GRACE_TEXT = (
    "Selections keep {share:.0%} of the records and repeat them as often as the steps need; `random` draws "
    "others for every seed, `full` trains on all records."
)


def _grace_text(pool: str, fraction: float, model: str = "stories260K") -> str:
    held_out = "held out: 180 other records, clean."
    return f"{model}, fine-tuned on {POOLS[pool]}; {held_out} {GRACE_TEXT.format(share=fraction)}"


def _grace_claims(subject: str, budgets: dict[str, tuple[str, ...]]) -> Claims:
    """Claims about `grace` against references, by budget."""
    labels = {"random": "a random one of equal size", "full": "all data"}
    return tuple(
        (budget, f"{subject}, against {labels[reference]}", "grace", reference)
        for budget, references in budgets.items()
        for reference in references
    )


def _grace(
    pool: str, fraction: float, arms: dict[str, str], claims: dict[str, tuple[str, ...]], **more: Any
) -> Task:
    """stories260K on a pool of `grace.pools`; all arms have the rate that is best for `random`."""
    share = f"{fraction:.0%}".replace("%", " %") + f" of a {pool} pool"
    return Task(
        name=f"grace_{pool}_{fraction * 100:02.0f}",
        title=f"GRACE, {share}",
        text=_grace_text(pool, fraction),
        prepare=grace_pools.build,
        arms=arms,
        comparisons=both_budgets(tuple(arms)),
        claims=_grace_claims(f"GRACE picks {share}", claims),
        recipe_name=f"grace_{pool}",
        fraction=fraction,
        check_rates={"mixed": str(grace_pools.FOLDER / "rates.jsonl")},
        **more,
    )


def _grace_llama() -> Task:
    arms = {**GRACE, **GRACE_PROXY}
    text = _grace_text("dirty", 0.3, "The small Llama (8.9 M parameters)")
    return Task(
        name="grace_llama",
        title="GRACE, small Llama",
        text=f"{text} For `grace_proxy`, stories260K scores the records in place of the trained model.",
        prepare=lambda: (grace_pools.build(), small_llama.build()),
        arms=arms,
        comparisons=(Comparison("time", (tuple(arms),), ("random", "full")),),
        claims=_grace_claims("Small Llama: GRACE picks 30 % of a dirty pool", {"time": FULL}),
        fraction=0.3,
    )


def _grace_smollm2() -> Task:
    arms = {name: GRACE[name] for name in ("random", "full")} | GRACE_PROXY
    claim = "SmolLM2-135M: GRACE by a proxy picks a quarter of a dirty pool, against a random one"
    dirt = grace_pools.SMOLLM2_DIRT
    return Task(
        name="grace_smollm2",
        title="GRACE, SmolLM2-135M",
        text=(
            f"SmolLM2-135M-Instruct, fine-tuned on {dirt.distinct} short problems of GSM8K's training set, "
            f"{dirt.copied * dirt.copies} copies of {dirt.copied} of them, {dirt.garbage} records of random "
            f"characters and {dirt.garbage} snippets of two words; held out: {smollm2.CHECK} short problems "
            f"of its test set. {GRACE_TEXT.format(share=0.25)} For `grace_proxy`, stories260K scores the "
            "records in place of the trained model."
        ),
        prepare=grace_pools.build_smollm2,
        arms=arms,
        comparisons=(Comparison("time", (tuple(arms),), ("random", "full")),),
        claims=(("time", claim, "grace_proxy", "random"),),
        seeds=3,
        fraction=0.25,
    )


def _grace_importance() -> Task:
    """Every candidate is scored, once, so that arms differ only in importance."""
    kinds = {kind: arm(kind, "grace", f"grace/{kind}") for kind in (*IMPORTANCE, *TRADE_OFFS)}
    claim = "GRACE's default importance (half as many tokens again) against coverage alone, dirty pool"
    return Task(
        name="grace_importance",
        title="GRACE by kind of importance",
        text=_grace_text("dirty", 0.1),
        prepare=grace_pools.build,
        arms={"random": "random", **kinds},
        comparisons=(Comparison("steps", (("random", *IMPORTANCE), TRADE_OFFS), ("random", "coverage")),),
        claims=(("steps", claim, "head_length_90", "coverage"),),
        recipe_name="grace_dirty",
        fraction=0.1,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "grace_importance": _grace_importance,
    "grace_clean_10": lambda: _grace("clean", 0.1, GRACE_ALL, {"time": FULL}, seeds=3, first_rates=TUNED),
    "grace_dirty_05": lambda: _grace("dirty", 0.05, GRACE_FEW, {"time": RANDOM}),
    "grace_dirty_10": lambda: _grace("dirty", 0.1, GRACE_ALL, {"time": (*RANDOM, *FULL)}, first_rates=TUNED),
    "grace_dirty_30": lambda: _grace("dirty", 0.3, GRACE_FEW, {"time": RANDOM}),
    "grace_llama": _grace_llama,
    "grace_smollm2": _grace_smollm2,
}
