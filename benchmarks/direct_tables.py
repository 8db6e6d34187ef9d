"""The tables of a `direct` result file, in Markdown."""

from collections.abc import Iterable
from typing import Any

from frame import compare, mean_sd
from tables import COMPARISON_HEAD, comparison_row, number, of_kind, table


def sections(content: dict[str, Any]) -> list[str]:
    """Paragraphs and tables, to be put below the file's heading."""
    return {
        "solver": _solver,
        "million": _million,
        "curvature": _curvature,
        "sketch": _sketch,
        "decay_clean": _decay,
        "decay_planted": _decay,
        "decay_smollm2": _decay,
    }[content["settings"]["part"]](content)


def _solver(content: dict[str, Any]) -> list[str]:
    return [*_linear(content), *_movement(content), *_gpt2(content)]


def _linear(content: dict[str, Any]) -> list[str]:
    told = (
        "**The linear program** (`budgeted_top`): a tenth of N rows, the budget three tenths of their "
        "average cost, against HiGHS where that is done in time. One core, the median of three."
    )
    rows = []
    for key, entry in of_kind(content, "linear").items():
        _, kind, n = key.split("/")
        general = entry.get("general_seconds")
        apart = "-" if general is None else f"{entry['difference']:.1e}"
        rows.append([kind, f"{int(n):,}", number(entry["seconds"], 4), number(general, 2), apart])
    return [told, table(["costs", "N", "seconds", "HiGHS s", "relative difference"], rows)]


def _movement(content: dict[str, Any]) -> list[str]:
    told = (
        "**The paper's problem** (`longest_sum`, eight beginnings) beside the published steps (projected "
        "gradients with Dykstra's projections, from one beginning, then the K largest weights, whatever they "
        "cost), on the same 256 flat directions, K = N / 10, tau 0.6. Measured elsewhere for the authors' "
        "own code at N = 2,000, 10,000 and 50,000: 3.0, 7.0 and 50 s, picks 8, 6 and 2 % over budget."
    )
    rows = []
    for key, entry in of_kind(content, "movement").items():
        ours, theirs = entry["ours"], entry["published"]
        rows.append(
            [
                f"{int(key.split('/')[1]):,}",
                number(ours["seconds"], 3),
                number(theirs["seconds"], 2),
                number(ours["objective"] / theirs["objective"], 4),
                number(entry["at_their_cost"] / theirs["objective"], 4),
                f"{ours['over_budget']:.1%}",
                f"{theirs['over_budget']:.2%}",
                f"{theirs['picks_over_budget']:.2%}",
                number(ours["of_bound"], 3),
            ]
        )
    head = [
        "N", "seconds", "published s", "objective, ours / theirs", "for what theirs cost", "over budget",
        "theirs", "their picks", "ours / upper bound",
    ]  # fmt: skip
    return [told, table(head, rows)]


def _gpt2(content: dict[str, Any]) -> list[str]:
    entry = content["entries"]["gpt2/whole"]
    told = (
        f"**A whole selection** on a GPT-2 of {entry['parameters'] / 1e6:.2f} M parameters, 200 samples and "
        "32 to validate on, projections of 512 numbers, gradients measured and samples chosen. The authors' "
        "code took 85 s there, 77 of them in the sketch (measured elsewhere)."
    )
    rows = [
        [objective, number(entry[objective]["measuring"], 2), number(entry[objective]["choosing"], 3)]
        for objective in ("curvature", "paper")
    ]
    return [told, table(["objective", "measuring s", "choosing s"], rows)]


def _million(content: dict[str, Any]) -> list[str]:
    told = (
        "**A million** stored gradients of 1,024 numbers in half precision, 2 % of them copies, 100,000 to "
        "be picked, tau 0.5, 256 validation samples, one core; seconds from the store to the picks with "
        "their reasons, peak memory of the process, the file's pages among it."
    )
    rows = [
        [
            key.split("/")[1], number(entry["seconds"], 1), number(entry["peak_gib"], 2),
            f"{entry['copies_left_out']:,}", number(entry["budget_used"], 6), number(entry["of_bound"], 6),
        ]
        for key, entry in of_kind(content, "million").items()
    ]  # fmt: skip
    return [
        told,
        table(["objective", "seconds", "GiB", "copies left out", "budget used", "objective / bound"], rows),
    ]


def _curvature(content: dict[str, Any]) -> list[str]:
    entry = content["entries"]["curvature/stories"]
    hessian = entry["hessian"]
    told = (
        f"**Estimates of the curvature.** stories260K, {entry['parameters']:,} weights of its blocks, "
        f"{entry['samples']} held-out speeches of 64 tokens. The Hessian's 20 largest eigenpairs took "
        f"{hessian['products']} Hessian-vector products and {hessian['seconds']:.0f} s; one pass for the "
        f"samples' gradients takes {entry['one_pass_seconds']:.1f} s. Overlap of the largest 20 and 5 "
        "eigenvectors' span with the Hessian's."
    )
    rows = [
        [
            name, number(one["overlap"], 3), number(one["overlap_5"], 3), number(one["effective_rank"], 1),
            number(one["seconds"], 1),
        ]
        for name, one in entry["sources"].items()
    ]  # fmt: skip
    return [told, table(["gradients of", "overlap, 20", "overlap, 5", "effective rank", "seconds"], rows)]


def _sketch(content: dict[str, Any]) -> list[str]:
    entry = content["entries"]["sketch/stories"]
    kept = (
        f"**What projecting costs.** stories260K on plays; {entry['picked']} records picked of 140 speeches, "
        "75 copies of one, 30 records of random tokens and 30 of one to three; 40 other speeches validate. "
        "The objective that whole gradients give the picks, as a share of what it is for picks made with "
        "whole gradients (above 1 where a projection misjudges the stiff budget), and the overlap (Jaccard) "
        "of the picks of two seeds."
    )
    rows = [
        [f"{int(width):,}", *_each(one["objective"], 4), *_each(one["jaccard"], 2)]
        for width, one in entry["kept"].items()
    ]
    lengths = entry["lengths"]
    clip = (
        f"**What clipping keeps out.** Of random tokens the median gradient is {lengths['random tokens']} "
        f"long, of speeches {lengths['speeches']}. Records of random tokens among {entry['picked']} picks, "
        f"gradients projected to 1,024 numbers; of one to three tokens there are at most {_snippets(entry)}."
    )
    clips = [[setting, *map(str, one["random tokens"])] for setting, one in entry["clip"].items()]
    seeds = ["seed 0", "seed 1", "seed 2"]
    return [
        kept,
        table(["projected to", *seeds, "overlap 0, 1", "overlap 0, 2", "overlap 1, 2"], rows),
        clip,
        table(["gradients", *seeds], clips),
    ]


def _each(values: Iterable[float], digits: int) -> list[str]:
    return [number(value, digits) for value in values]


def _snippets(entry: dict[str, Any]) -> int:
    return max(count for one in entry["clip"].values() for count in one["snippets"])


def _decay(content: dict[str, Any]) -> list[str]:
    planted, arms = content["settings"]["part"] != "decay_clean", _by_arm(content)
    losses = {arm: {seed: one["loss"] for seed, one in entries.items()} for arm, entries in arms.items()}
    rows = []
    for arm, entries in arms.items():
        mean, sd = mean_sd(losses[arm])
        kinds = [_mean(entry["kinds"][kind] for entry in entries.values()) for kind in _KINDS]
        rows.append(
            [
                f"`{arm}`", str(len(entries)), number(mean, 4), number(sd, 4),
                f"{_mean(entry['tokens'] for entry in entries.values()):,.0f}",
                *([f"{kind:.0f}" for kind in kinds] if planted else []),
                number(_mean(entry["select_seconds"] for entry in entries.values()), 2),
            ]
        )  # fmt: skip
    head = ["arm", "seeds", "held-out loss", "sd", "tokens", *(_KINDS if planted else ()), "choosing s"]
    parts = [*_decay_told(content), table(head, rows)]
    for reference in ("random", "full", "longer"):
        if reference in arms:
            parts.append(f"Against `{reference}`, paired by seed (negative: the arm is better):")
            parts.append(table(COMPARISON_HEAD, [comparison_row(one) for one in compare(losses, reference)]))
    return parts


def _decay_told(content: dict[str, Any]) -> list[str]:
    settings = content["settings"]
    if settings["part"] == "decay_smollm2":
        return [_smollm2_told(settings), _smollm2_charge(content)]
    pool = "1,200 records of GSM8K, Dolly and commonsense"
    if settings["part"] == "decay_planted":
        pool += ", of which 75 are copies of one, 120 random tokens and 120 of one or two words"
    return [
        f"**The decay phase** of the small Llama from the end of its stable phase: {settings['steps']} steps "
        f"of two packed rows of 512 tokens on {settings['fraction']:.0%} of {pool}; every token learned. 120 "
        "records to validate on, held-out loss on 180 others, nats per token. `full` and `longer` take all "
        "records, `longer` for as many steps more as measuring the pool's gradients cost."
    ]


def _smollm2_told(one: dict[str, Any]) -> str:
    return (
        f"**The decay phase** of SmolLM2-135M-Instruct as published, its Adam begun anew: {one['steps']} "
        f"steps of one packed row of 512 tokens, from a learning rate of {one['learning_rate']:g} to zero, "
        f"on {one['fraction']:.0%} of {one['pool']} records of GSM8K, Dolly and commonsense, of which "
        f"{one['copies']} are copies of one, {one['each_junk']} random tokens and {one['each_junk']} of one "
        f"or two words; every token learned. {one['validating']} records to validate on, held-out loss on "
        f"{3 * one['held_out']} others, nats per token. `full` takes all records."
    )


def _smollm2_charge(content: dict[str, Any]) -> str:
    """What deciding costs, for those who have not measured the pool anyway."""
    settings, arms, start = content["settings"], _by_arm(content), content["entries"]["start/smollm2"]
    measured, one_pool = start["measured"], settings["pool"] + settings["validating"]
    runs = [entry for name, entries in arms.items() if name != "longer" for entry in entries.values()]
    decay = _mean(entry["seconds"] for entry in runs)
    charge = measured["seconds"] * one_pool / measured["samples"]
    text = (
        f"Before the decay the held-out loss is {start['loss']:.4f}. Measuring the gradients of the stock "
        f"that all pools are drawn from ({measured['samples']} records, {measured['tokens']:,} tokens) took "
        f"{measured['seconds']:.0f} s, a decay of {_mean(entry['tokens'] for entry in runs):,.0f} tokens "
        f"{decay:.0f} s, both beside other work. So deciding on one pool, its {settings['validating']} "
        f"validation samples included, costs {charge / decay:.1f} times the decay, which the arms that train "
        "for equal tokens are not charged with."
    )
    if "longer" not in arms:
        return text
    more = _mean(entry["steps"] for entry in arms["longer"].values()) - settings["steps"]
    return f"{text} `longer` has {more:.0f} more steps for it."


_KINDS = ("copy", "random tokens", "very short")


def _by_arm(content: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for key, entry in of_kind(content, "decay").items():
        _, arm, seed = key.split("/")
        found.setdefault(arm, {})[int(seed)] = entry
    return found


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)
