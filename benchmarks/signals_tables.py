"""Tables of `signals.py` and `signals_store.py` for docs/results.md, from their result files."""

import math
import statistics
from typing import Any

from tables import number, of_kind, table

MEBI = 2**20
NAMES = {
    "llama10m": "Llama, 9.8 M parameters (4 blocks, width 384, vocabulary 4,096; random weights and tokens)",
    "smollm2": "SmolLM2-135M-Instruct, GSM8K text",
    "stories": "stories260K, TinyStories",
    "small_llama": "the Llama of 8.9 M parameters, GSM8K and Dolly",
}
BARS = {"loss+embedding+grad": 0.90, "loss+embedding+grad+grad_norm": 1.25}
"""Highest ratio to ordinary training that the specification allows."""

ALLOWED = 64
"""MiB over one batch's activations that the specification allows."""


def sections(content: dict[str, Any]) -> list[str]:
    """Paragraphs of one result file."""
    made = {
        "cost": _cost,
        "accuracy": _accuracy,
        "precondition": _precondition,
        "peers": _peers,
        "store": _store,
    }
    return made[content["settings"]["part"]](content)


# ---- cost --------------------------------------------------------------------------------------------------


def _cost(content: dict[str, Any]) -> list[str]:
    parts = [
        "Ratios to one ordinary forward + backward (which also forms the gradients of all weights) on the "
        "same batch, all arms in turn in one process, one thread: medians over the rounds, by the wall-clock "
        "and by processor time (the machine was shared). Every token counts and nothing is padded, which is "
        "the dearest case: the engine applies the head at label positions only. Gradients are of the linear "
        "weights of the blocks, k = 1,024."
    ]
    for name in NAMES:
        if timing := content["entries"].get(f"time/{name}"):
            parts += [_timing(name, timing), *_whole_pass(name, content)]
        if memory := of_kind(content, f"memory/{name}"):
            parts.append(_memory(name, memory))
    return parts


def ratios(seconds: dict[str, list[list[float]]], arm: str, clock: int) -> float:
    """The median over rounds of an arm's time over ordinary training's."""
    pairs = zip(seconds[arm], seconds["ordinary"], strict=True)
    return statistics.median(ours[clock] / theirs[clock] for ours, theirs in pairs)


def _timing(name: str, entry: dict[str, Any]) -> str:
    seconds = entry["seconds"]
    rows = [
        [f"`{arm}`", f"{ratios(seconds, arm, 0):.3f}", f"{ratios(seconds, arm, 1):.3f}", _bar(arm)]
        for arm in seconds
        if arm != "ordinary"
    ]
    usual = statistics.median(spent[1] for spent in seconds["ordinary"])
    told = (
        f"**Time, {NAMES[name]}**: {len(seconds['ordinary'])} rounds on {entry['batches']} "
        f"batch{'es' if entry['batches'] > 1 else ''} in turn; ordinary training takes {usual:.2f} processor "
        "seconds a batch."
    )
    return told + "\n\n" + table(["arm", "wall-clock", "processor", "allowed"], rows)


def _bar(arm: str) -> str:
    return f"{BARS[arm]:.2f}" if arm in BARS else "-"


def _whole_pass(name: str, content: dict[str, Any]) -> list[str]:
    entry = content["entries"].get(f"pass/{name}")
    if entry is None:
        return []
    wall, cpu = (ratios(entry["seconds"], "gw.collect", clock) for clock in (0, 1))
    return [
        f"`gw.collect` from end to end over all of those batches (loss, embedding, grad; inspection and "
        f"rehearsal included): {wall:.3f} by the wall-clock, {cpu:.3f} by processor time."
    ]


def _memory(name: str, entries: dict[str, dict[str, Any]]) -> str:
    arms = {key.split("/", 2)[2]: entry for key, entry in entries.items()}
    activations = arms["ordinary"]["activations"] / MEBI
    rows = []
    for arm, entry in arms.items():
        peak = entry["peak"] / MEBI
        rows.append([f"`{arm}`", f"{peak:,.0f}", f"{peak - activations:+,.0f}"])
    told = (
        f"**Memory, {NAMES[name]}**: the highest that resident memory rose over the loaded model during one "
        f"batch, MiB, each arm in a process of its own, with an allocator that keeps no holes. Ordinary "
        f"training keeps {activations:,.0f} MiB of activations for its backward pass; the specification "
        f"allows that and {ALLOWED} MiB."
    )
    return told + "\n\n" + table(["arm", "peak", "over activations"], rows)


# ---- accuracy ----------------------------------------------------------------------------------------------


def together(values: list[float]) -> float:
    """The root mean square of several seeds' root mean squares."""
    return math.sqrt(statistics.fmean(value**2 for value in values))


def _accuracy(content: dict[str, Any]) -> list[str]:
    parts = [
        "Errors (<z_i, z_j> - <g_i, g_j>) / (|g_i| |g_j|) of projected gradients: root mean squares over "
        "pairs of samples, and over samples with themselves (squared lengths), over all seeds. The dense "
        "Gaussian projection's are drawn from their exact distribution, which depends on the true inner "
        "products alone. Own-mean losses, linear weights of the blocks, trained models. The bias is the mean "
        "error of pairs over the seeds, with its standard error.",
        "![Errors by length](figures/signals-accuracy.png)",
    ]
    for name in NAMES:
        if by_size := list(of_kind(content, f"size/{name}").values()):
            parts.append(_sizes(content["entries"][f"true/{name}"], name, by_size))
        if by_side := list(of_kind(content, f"side/{name}").values()):
            parts.append(_sides(name, by_side))
    return parts


def _sizes(true: dict[str, Any], name: str, entries: list[dict[str, Any]]) -> str:
    rows = []
    for size in entries[0]["errors"]["gradwise"]:
        ours, theirs = ([entry["errors"][way][size] for entry in entries] for way in ("gradwise", "dense"))
        cells = [
            number(together([one[place] for one in way]), 4) for place in (0, 1) for way in (ours, theirs)
        ]
        ratio = [
            together([o[place] for o in ours]) / together([t[place] for t in theirs]) for place in (0, 1)
        ]
        pairs, own = ([*cells[2 * place : 2 * place + 2], f"{ratio[place]:.2f}"] for place in (0, 1))
        rows.append([f"{int(size):,}", *pairs, *own, _mean([one[2] for one in ours])])
    told = (
        f"**By length, {NAMES[name]}**: {true['samples']} samples, {true['parameters']:,} parameters, "
        f"{len(entries)} seeds; cosines between samples from {true['cosines'][0]:.2f} over "
        f"{true['cosines'][2]:.2f} (median) to {true['cosines'][4]:.2f}."
    )
    head = ["k", "pairs", "dense", "ratio", "own", "dense", "ratio", "bias"]
    return told + "\n\n" + table(head, rows)


def _mean(values: list[float]) -> str:
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):+.4f} ± {number(spread, 4)}"


def _sides(name: str, entries: list[dict[str, Any]]) -> str:
    rows = []
    for size, sides in entries[0]["errors"].items():
        for side in sides:
            found = [entry["errors"][size][side] for entry in entries]
            cells = [number(together([one[place] for one in found]), 4) for place in (0, 1)]
            rows.append([f"{int(size):,}", side, *cells])
    told = f"**By the side that matrices are folded to, {NAMES[name]}**:"
    return told + "\n\n" + table(["k", "side", "pairs", "own"], rows)


# ---- preconditioning ---------------------------------------------------------------------------------------

WAYS = {
    "none": "no preconditioning",
    "gradwise": "rank one: means of d (gradwise)",
    "means of v (Adafactor)": "rank one: means of v (Adafactor)",
    "means of log d": "rank one: means of log d",
    "means of 1 / d": "rank one: means of 1 / d",
}


def _precondition(content: dict[str, Any]) -> list[str]:
    parts = [
        "Gradients scaled by 1 / d, d = sqrt(v) + eps, number by number (the full form), against scales of "
        "rows times scales of columns, and against no scaling at all. Cosines and inner products between all "
        "pairs of samples, norms of each; the ratio of norms is theirs to the full form's."
    ]
    head = ["form", "cosines RMS", "cosines r", "inner products r", "norms r", "norms ratio", "its spread"]
    for key, entry in of_kind(content, "precondition").items():
        rows = [[told, *_compared(entry["ways"][way])] for way, told in WAYS.items() if way in entry["ways"]]
        told = (
            f"**{NAMES[key.split('/')[1]]}**: {entry['samples']} samples, second moments after "
            f"{entry['steps']} AdamW steps on them."
        )
        parts.append(told + "\n\n" + table(head, rows))
    return parts


def _compared(way: dict[str, float]) -> list[str]:
    shown = [f"{way['cosines_rms']:.4f}"]
    shown += [f"{way[name]:.4f}" for name in ("cosines_correlation", "products_correlation")]
    return [
        *shown,
        f"{way['norms_correlation']:.4f}",
        f"{way['norms_ratio']:.4f}",
        f"{way['norms_spread']:.4f}",
    ]


# ---- peers -------------------------------------------------------------------------------------------------


def _peers(content: dict[str, Any]) -> list[str]:
    entries = of_kind(content, "peer")
    rows = [_peer(entry) for entry in entries.values() if "problem" not in entry]
    told = (
        f"One batch of 16 x 256 tokens of the {NAMES['llama10m']}; own-mean losses, linear weights of the "
        "blocks. Time as the median ratio to an ordinary forward + backward run just before it in the same "
        "process, projections set up beforehand; peak memory over the loaded model in a process of its own, "
        "set-up included. Errors as above, after one factor that makes squared lengths right on average "
        "where a package leaves its projections unscaled (marked *). A dense Gaussian projection's errors "
        "at 1,024 numbers: .031 and .044."
    )
    head = ["way", "wall-clock", "processor", "peak MiB", "numbers", "pairs", "own", "how"]
    parts = [told + "\n\n" + table(head, rows)]
    if ordinary := content["entries"].get("ordinary/memory"):
        parts.append(f"Ordinary training's peak on the same batch: {ordinary['peak'] / MEBI:,.0f} MiB.")
    lost = [entry for entry in entries.values() if "problem" in entry]
    if lost:
        parts.append("Did not run: " + "; ".join(f"`{one['peer']}` ({one['problem']})" for one in lost) + ".")
    return parts


def _peer(entry: dict[str, Any]) -> list[str]:
    unscaled = not 0.5 < entry["scale"] < 2
    found = entry["scaled_errors" if unscaled else "errors"]
    exact = together([one[0] for one in found]) < 1e-6
    cells = [
        "exact" if exact else number(together([one[place] for one in found]), 4) + ("*" if unscaled else "")
        for place in (0, 1)
    ]
    how = f"{entry['package']}: {entry['note']}" if entry["package"] else entry["note"]
    seconds = {"ordinary": entry["seconds"]["ordinary"], "peer": entry["seconds"]["peer"]}
    return [
        f"`{entry['peer']}`",
        f"{ratios(seconds, 'peer', 0):.2f}",
        f"{ratios(seconds, 'peer', 1):.2f}",
        f"{entry['peak'] / MEBI:,.0f}",
        f"{entry['numbers']:,}",
        *cells,
        how,
    ]


# ---- the store ---------------------------------------------------------------------------------------------


def _store(content: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"`{entry['want']}`",
            f"{entry['problems']:,}",
            f"{entry['max_length']:,}",
            f"{entry['blocks']:,}",
            ", ".join(f"{share:.0%}" for share in entry["killed_at"]),
            f"{entry['seconds']:,.0f}",
            f"{entry['seconds_killed']:,.0f}",
            "none" if not entry["differ"] else ", ".join(entry["differ"]),
        ]
        for entry in of_kind(content, "store").values()
    ]
    told = (
        "`gradwise collect` on SmolLM2-135M-Instruct over problems of GSM8K, once left alone and once killed "
        "with SIGKILL at these shares of its blocks and started again; then all files of the two stores "
        "compared byte by byte, the manifest but for its seconds. Seconds are of the wall-clock on a shared "
        "machine, work lost by the kills and loading the model again not counted."
    )
    head = [
        "quantities",
        "problems",
        "tokens of each at most",
        "blocks",
        "killed at",
        "seconds alone",
        "seconds killed",
        "files that differ",
    ]
    return [told + "\n\n" + table(head, rows), *_bars(content)]


def _bars(content: dict[str, Any]) -> list[str]:
    shown = [entry["bar"] for entry in of_kind(content, "store").values() if entry["bar"]]
    return [f"The bar as it was last shown: `{shown[-1]}`"] if shown else []
