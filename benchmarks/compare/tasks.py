"""What `run` compares: models, data, recipes, arms, budgets."""

from collections.abc import Callable
from typing import Any

from benchmarks.common import small_llama, smollm2
from benchmarks.common.folders import ROOT
from benchmarks.common.records import COMMONSENSE, INSTRUCTIONS, LARGEST
from benchmarks.compare import grace_tasks
from benchmarks.compare.task import HERE, Claims, Comparison, Task, arm, both_budgets
from benchmarks.d3 import pools as d3_pools
from gradwise.recipe.yaml_text import read_yaml

SELECTIONS: tuple[str, ...] = ("random", "full", "loss_top", "length_top", "easy_first")
LAYERS: tuple[str, ...] = ("lisa", "grass", "lora")
LAYER_TEXT = (
    "Selections keep a quarter of the records and repeat it as often as the steps need. `random` draws "
    "another quarter for every seed; `easy_first` has the records of `random`; `full` and the layer policies "
    "train on all records. Layer policies: 2 active blocks; embeddings, head and final norm frozen. LoRA on "
    "all linear layers, r 16, alpha 32."
)


def _arm_files(task: str) -> dict[str, str]:
    return {name: f"{HERE}/arms/{task}/{name}.yaml" for name in (*SELECTIONS, *LAYERS)}


def _small_llama() -> Task:
    total = {part: sum(getattr(parts, part) for parts in INSTRUCTIONS.values()) for part in ("tune", "check")}
    data = small_llama.FOLDER / "data" / "rates"
    return Task(
        name="small_llama",
        title="selections and layer policies, small Llama",
        text=(
            "The small Llama (`benchmarks/common/small_llama.py`: 8.9 M parameters, six blocks), fine-tuned "
            f"on {total['tune']} records of GSM8K, Dolly and commonsense ({', '.join(COMMONSENSE)}) of at "
            f"most {LARGEST} characters; held out: {total['check']} others. {LAYER_TEXT}"
        ),
        prepare=small_llama.build,
        arms=_arm_files("small_llama"),
        comparisons=both_budgets((*SELECTIONS, *LAYERS)),
        claims=(("time", "Small Llama: GRASS against full training", "grass", "full"),),
        own_rates=True,
        first_rates=dict.fromkeys(SELECTIONS, (1e-3, 3e-3, 1e-2)) | dict.fromkeys(LAYERS, (3e-3, 1e-2, 3e-2)),
        check_rates={domain: str(data / f"{domain}.jsonl") for domain in INSTRUCTIONS},
    )


FOUR: tuple[tuple[str, ...], ...] = (
    ("random", "full", "grace", "d3", "grass", "direct", "together"),
    ("grace_published", "d3_published", "grass_published", "direct_published", "together_published"),
)
FOUR_TEXT = (
    "Each of the four methods alone, and all four together, as recommended and with the published settings "
    "(`recipes/published`, brought to this size). `random` and `grace*` keep a quarter of the records; "
    "`full`, `d3*` and `grass*` train on all of them, `direct*` on all of them "
    "until the last quarter of the steps, for which they choose samples. Layer policies update two of "
    "{blocks} blocks at a time, with embeddings, head and final norm frozen."
)
FOUR_OVERHEAD = (
    "`d3` and `together` have `overhead: 0.25` for D³, since the default (0.1) affords no measurement in so "
    "short a run."
)
FOUR_RATES = (
    "Learning rates were not tuned here: they are the best of [{0}]({0}.md), one for layer policies and the "
    "runs together, one for all others."
)
FOUR_HALVES = (
    "Of the held-out records, one half is what `direct*` and `together*` choose by, and the other half "
    "measures all arms."
)
FOUR_CLAIMS = {
    "grace": ("GRACE's quarter against a random one", "random"),
    "d3": ("D³ against a shuffle", "full"),
    "d3_trial": ("D³ by its published definition against a shuffle", "full"),
    "direct": ("DiReCT's last quarter against the data as they come", "full"),
    "together": ("all four methods against full training", "full"),
}
"""What the index says of a comparison of the four, and the reference, by arm."""


FOUR_AT_EQUAL_TIME = (FOUR[0], ("grace_published", "grass_published", "direct_published"))
"""Without `d3_published` and `together_published`, whose decisions exceed the budget."""


def _four_claims(model: str, **arms: tuple[str, ...]) -> Claims:
    """Rows of the index for some arms, by budget."""
    return tuple(
        (budget, f"{model}: {FOUR_CLAIMS[arm][0]}", arm, FOUR_CLAIMS[arm][1])
        for budget, arm_names in arms.items()
        for arm in arm_names
    )


def _four_files(folder: str) -> dict[str, str]:
    return {name: f"{HERE}/arms/{folder}/{name}.yaml" for together in FOUR for name in together}


def _four() -> Task:
    return Task(
        name="four",
        title="the four methods alone and together, small Llama",
        text=(
            "The small Llama (8.9 M parameters), fine-tuned on 480 records of three sets. "
            f"{FOUR_TEXT.format(blocks='six')} {FOUR_OVERHEAD} {FOUR_RATES.format('compare-small_llama')} "
            f"{FOUR_HALVES} The budget of time is more than twice what full training takes for 48 steps. "
            "`d3_published`, `d3_trial` (the published definition of influence, `rule: trial`) and "
            "`together_published` decide for longer. [compare-published_d3](compare-published_d3.md) gives "
            "others the time of the first two; `together_published` is compared at equal steps only."
        ),
        prepare=small_llama.build,
        arms=_four_files("four") | {"d3_trial": f"{HERE}/arms/four/d3_trial.yaml"},
        comparisons=(
            Comparison("steps", (*FOUR, ("d3_trial",)), ("random", "full")),
            Comparison("time", FOUR_AT_EQUAL_TIME, ("random", "full"), "90"),
        ),
        claims=_four_claims("Small Llama", steps=("together",), time=("together",)),
        own_rates=True,
    )


def _published_d3() -> Task:
    arms = ("d3_trial", "d3_published", "d3", "full")
    claim = "Small Llama: full training in the time of published D³, against it"
    return Task(
        name="published_d3",
        title="D³ as published, at equal time, small Llama",
        text=(
            "The small Llama on 480 records of three sets, with the arms of [compare-four](compare-four.md). "
            "`d3_published` has the printed estimate of influence, `d3_trial` its definition. "
            f"The budget is about what either takes for the steps of that table. {FOUR_HALVES}"
        ),
        prepare=small_llama.build,
        arms={name: f"{HERE}/arms/four/{name}.yaml" for name in arms},
        comparisons=(Comparison("time", (arms,), ("d3_published", "full"), "240"),),
        claims=(("time", claim, "full", "d3_published"),),
        recipe_name="four",
        own_rates=True,
    )


def _four_smollm2() -> Task:
    records, held_out = sum(smollm2.DOMAINS.values()), smollm2.DOMAINS_CHECK * len(smollm2.DOMAINS)
    return Task(
        name="four_smollm2",
        title="the four methods alone and together, SmolLM2-135M",
        text=(
            f"SmolLM2-135M-Instruct, fine-tuned on {records} short records of GSM8K, Dolly and commonsense. "
            f"{FOUR_TEXT.format(blocks='30')} {FOUR_RATES.format('compare-smollm2')} "
            f"Of {held_out} held-out records, one half is what `direct*` and `together*` choose by, and the "
            "other half measures all arms. Runs are this short because of the time they take on one core, "
            "and some settings follow from that. The `overhead` of `d3` is 1.1, which is what one "
            "measurement takes: more than the training itself. Its units are whole batches, which were the "
            "default then. The published D³ estimates with 2 random "
            "vectors and 2 samples, where the authors have 5 vectors, and the whole run is one of its "
            "chunks. The published GRACE selects again every 5 steps, and the published GRASS draws every 8 "
            "steps instead of 25."
        ),
        prepare=smollm2.build_domains,
        arms=_four_files("four_smollm2"),
        comparisons=(Comparison("steps", FOUR, ("random", "full")),),
        claims=_four_claims("SmolLM2-135M", steps=("together",)),
        seeds=3,
        own_rates=True,
    )


def _four_stories() -> Task:
    return Task(
        name="four_stories",
        title="the four methods alone and together, stories260K",
        text=(
            "stories260K, fine-tuned on 576 records of GSM8K, Dolly and commonsense; `full` sees each of "
            f"them once. {FOUR_TEXT.format(blocks='five')} {FOUR_OVERHEAD} One learning rate for all, the "
            "best of [layers-stories](layers-stories.md) both for full training and for layer policies. Of "
            "180 held-out records, one half is what `direct*` and `together*` choose by, and the other half "
            "measures all arms. The budget of time is several times what full training takes for 96 steps, "
            "so that `together` has time to decide. The decisions of `d3_published` and of "
            "`together_published` for 96 steps alone take longer than that budget. `d3_trial` takes the "
            "published definition of influence literally (`rule: trial`)."
        ),
        prepare=d3_pools.tune,
        arms=_four_files("four_stories") | {"d3_trial": f"{HERE}/arms/four_stories/d3_trial.yaml"},
        comparisons=(
            Comparison("steps", (*FOUR, ("d3_trial",)), ("random", "full")),
            Comparison("time", FOUR_AT_EQUAL_TIME, ("random", "full"), "45"),
        ),
        claims=_four_claims("stories260K", steps=("grace", "d3_trial", "together")),
    )


def _unit_sizes() -> Task:
    default_file = f"{HERE}/arms/four_stories/d3.yaml"
    sizes = {f"d3_{size}": f"d3_{size}={default_file}+{HERE}/arms/d3/size_{size}.yaml" for size in (1, 3, 6)}
    arms = {"full": f"{HERE}/arms/four_stories/full.yaml", "d3_2": f"d3_2={default_file}", **sizes}
    return Task(
        name="unit_sizes",
        title="samples in a unit of D³, stories260K",
        text=(
            "stories260K, fine-tuned on 576 records of GSM8K, Dolly and commonsense, each of them once, as "
            "in [compare-four_stories](compare-four_stories.md). `full` shuffles. `d3_N` has D³'s default "
            "settings but for `overhead: 0.25`, with units of N samples of one domain: 2 are a quarter of a "
            "batch, which is the default, and 6 a whole batch."
        ),
        prepare=d3_pools.tune,
        arms=arms,
        comparisons=(Comparison("steps", (tuple(arms),), ("full",)),),
        claims=(("steps", "stories260K: D³ in batches of one domain against a shuffle", "d3_6", "full"),),
        recipe_name="four_stories",
    )


def _periods() -> Task:
    names = ("lisa_5", "lisa_25", "grass_5", "grass_10", "grass_25")
    return Task(
        name="periods",
        title="steps between two draws of layers, small Llama",
        text=(
            "The small Llama (8.9 M parameters), fine-tuned on 480 records of three sets. `grass_N` and "
            "`lisa_N` draw two of six blocks every N steps, GRASS by gradient norm as recommended, LISA "
            "uniformly. Embeddings, head and final norm are frozen. One learning rate for all, the best of "
            "[compare-small_llama](compare-small_llama.md), which was tuned with a draw every 5 steps."
        ),
        prepare=small_llama.build,
        arms={name: f"{HERE}/arms/periods/{name}.yaml" for name in names},
        comparisons=(Comparison("steps", (names,), ("grass_10", "lisa_25")),),
        claims=(("steps", "Small Llama: GRASS drawing every 25 steps, not 10", "grass_25", "grass_10"),),
        own_rates=True,
    )


def _smollm2() -> Task:
    return Task(
        name="smollm2",
        title="selections and layer policies, SmolLM2-135M",
        text=(
            f"SmolLM2-135M-Instruct, fine-tuned on {smollm2.PARTS['tune']} problems of GSM8K's training set "
            f"of at most {smollm2.LARGEST} characters; held out: {smollm2.CHECK} such problems of its test "
            f"set. {LAYER_TEXT}"
        ),
        prepare=smollm2.build,
        arms=_arm_files("smollm2"),
        comparisons=both_budgets(
            ("random", "full", "loss_top"), ("length_top", "lora", "grass"), ("lisa", "easy_first")
        ),
        claims=(("time", "SmolLM2-135M: GRASS against full training", "grass", "full"),),
        seeds=3,
        own_rates=True,
        first_rates=dict.fromkeys(SELECTIONS, (3e-4, 1e-3)) | dict.fromkeys(LAYERS, (1e-3, 3e-3)),
        check_rates={"gsm8k": str(smollm2.FOLDER / "data" / "rates.jsonl")},
    )


def _target_smollm2() -> Task:
    arms = ("random", "full", "dsir", "nearest", "grace")
    claim = "SmolLM2-135M: GRACE's 10 % towards SVAMP, against a random 10 %"
    return Task(
        name="target_smollm2",
        title="selection towards a target, SmolLM2-135M",
        text=(
            f"SmolLM2-135M-Instruct, fine-tuned on a tenth of {sum(smollm2.POOL.values())} short records of "
            f"GSM8K, Dolly and commonsense that is selected towards SVAMP, in 16 steps. Of {smollm2.TARGET} "
            "records of SVAMP one half is what selections choose by, the other half measures. `random` draws "
            "another tenth for every seed, and `full` takes records of the whole pool as they come. One "
            "learning rate for all, that of full training in [compare-smollm2](compare-smollm2.md)."
        ),
        prepare=smollm2.build_target,
        arms={name: name for name in arms},
        comparisons=(Comparison("steps", (arms,), ("random", "full")),),
        claims=(("steps", claim, "grace", "random"),),
        seeds=3,
        fraction=0.1,
    )


ORDERS = {
    "random": "random=shuffle",
    "interleave": "interleave",
    "herding": "herding=order.herding",
    "balanced": "balanced",
    "d3_domains": arm("d3_domains", "d3", "d3/domains"),
    "d3_mixed": arm("d3_mixed", "d3", "d3/mixed"),
    "given": "given",
    "easy_first": "easy_first",
    "influence": "influence",
    **{
        f"d3_{name}": arm(f"d3_{name}", "d3", f"d3/{name}")
        for name in ("first_order", "lookahead", "batches", "high_overhead")
    },
}
ORDER_TEXT = (
    "Every arm trains once on each record. `random` shuffles, `interleave` alternates domains, and "
    "`balanced` spreads label tokens evenly; none of these measures influence."
)
GRAPH_TEXT = (
    "`herding` and `influence` order by projected gradients. `d3_*` order by a measured influence graph: "
    "`d3_batches` of batches as they come, which cost so much to measure that none were: it is `balanced` "
    "again. `d3_mixed` of pieces of two samples from one domain, several to a batch, as is the default, and "
    "the others of batches from one domain."
)
WHOLE_BATCHES = ("d3_domains", "d3_first_order", "d3_lookahead", "d3_high_overhead")
"""Arms whose units are batches of one domain."""
ORDER_CLAIMS = {
    "balanced": "balanced order",
    "d3_domains": "D³ in batches of one domain",
    "d3_mixed": "D³",
}
"""What the index says of an order, by arm."""
ORDERS_FEW = ("random", "interleave", "balanced")
ORDERS_FIRST = ("random", "interleave", "balanced", "d3_domains")
"""Run before the others, so that an interrupted benchmark has all seeds of these."""
ORDERS_REST = tuple(name for name in ORDERS if name not in ORDERS_FIRST)


def _orders(
    name: str,
    prepare: Callable[[], Any],
    text: str,
    model: str,
    *rounds: tuple[str, ...],
    seeds: int = 5,
    claims: tuple[str, ...],
) -> Task:
    """One epoch on the same data in every arm; all have the recipe's learning rate."""
    arms = {name: ORDERS[name] for together in rounds for name in together}
    batch = read_yaml(ROOT / HERE / "recipes" / f"orders_{name}.yaml")["train"]["batch_size"]
    for whole in set(WHOLE_BATCHES) & set(arms):
        arms[whole] += f"+{HERE}/arms/d3/size_{batch}.yaml"
    return Task(
        name=f"orders_{name}",
        title=f"orders, {model}",
        text=" ".join([text, ORDER_TEXT, *([GRAPH_TEXT] if "d3_domains" in arms else [])]),
        prepare=prepare,
        arms=arms,
        comparisons=(Comparison("steps", rounds, ("random", "interleave")),),
        claims=tuple(
            ("steps", f"{model}: {ORDER_CLAIMS[arm]} against a shuffle", arm, "random") for arm in claims
        ),
        seeds=seeds,
    )


def _orders_pretrain() -> Task:
    text = "The small Llama (8.9 M parameters), from random weights on 800 texts of four domains."
    model = "Small Llama's pre-training"
    rounds = (ORDERS_FIRST, ORDERS_REST)
    return _orders("pretrain", d3_pools.pretrain, text, model, *rounds, claims=("d3_mixed",))


def _orders_tune() -> Task:
    text = "stories260K, fine-tuned on 576 records of GSM8K, Dolly and commonsense; held out: 180 others."
    model = "stories260K's fine-tuning"
    return _orders("tune", d3_pools.tune, text, model, ORDERS_FIRST, ORDERS_REST, claims=tuple(ORDER_CLAIMS))


def _orders_smollm2() -> Task:
    text = "SmolLM2-135M-Instruct, fine-tuned on 96 short records of GSM8K, Dolly and commonsense."

    def prepare() -> None:
        smollm2.build()
        d3_pools.smollm2()

    return _orders("smollm2", prepare, text, "SmolLM2-135M", ORDERS_FEW, seeds=3, claims=("balanced",))


TASKS: dict[str, Callable[[], Task]] = {
    "small_llama": _small_llama,
    "four": _four,
    "published_d3": _published_d3,
    "four_smollm2": _four_smollm2,
    "target_smollm2": _target_smollm2,
    "four_stories": _four_stories,
    "unit_sizes": _unit_sizes,
    "periods": _periods,
    "smollm2": _smollm2,
    **grace_tasks.TASKS,
    "orders_pretrain": _orders_pretrain,
    "orders_tune": _orders_tune,
    "orders_smollm2": _orders_smollm2,
}
