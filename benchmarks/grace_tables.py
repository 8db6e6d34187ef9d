"""The tables of a `grace` result file, in Markdown."""

import statistics
from collections.abc import Iterable
from typing import Any

from grace_figure import FIGURE
from grace_pools import KINDS
from tables import number, of_kind, table


def sections(content: dict[str, Any]) -> list[str]:
    """Paragraphs and tables, to be put below the file's heading."""
    return {
        "speed": _speed,
        "million": _million,
        "importance": _importance,
        "propagation": _propagation,
        "dial": _dial,
    }[content["settings"]["part"]](content)


def _speed(content: dict[str, Any]) -> list[str]:
    entries = of_kind(content, "speed")
    shares = list(next(iter(entries.values()))["seconds"])
    one = next(iter(entries.values()))
    told = (
        f"**Selection** of a share of {one['rows']:,} rows with {one['k']} neighbours each, half coverage, "
        "half random importance, exact lazy greedy on one core; seconds, the median of three. In the random "
        "graph neighbours are drawn at random, in the clustered one they are the nearest."
    )
    rows = [
        [key.split("/")[1], *(f"{statistics.median(entry['seconds'][share]):.2f}" for share in shares)]
        for key, entry in entries.items()
    ]
    return [told, table(["graph", *(f"{float(share):.0%}" for share in shares)], rows)]


def _million(content: dict[str, Any]) -> list[str]:
    entry = content["entries"]["million/clustered"]
    seconds = entry["seconds"]
    told = (
        f"**A million.** {entry['rows']:,} clustered embeddings of width {entry['width']} (intrinsic "
        f"dimension {entry['intrinsic']}), 16 neighbours and as many to spare, approximate search, two "
        f"cores: all as `gradwise.Grace` does it. Recall of the graph {entry['recall']:.3f}, peak memory of "
        f"the process {entry['peak_gib']:.1f} GiB, {sum(seconds.values()) / 60:.1f} minutes from end to end. "
        f"The refresh measured {entry['anchors']:,} nodes, of which {entry['moved']:,} had moved; "
        f"{entry['searched']:,} rows of the graph were searched anew. Of {entry['picked']:,} picks "
        f"{entry['stayed']:,} stayed."
    )
    return [told, table(["step", "seconds"], [[name, f"{value:.1f}"] for name, value in seconds.items()])]


def _importance(content: dict[str, Any]) -> list[str]:
    parts = [
        "**Garbage.** The dirty pool has 50 % distinct records, 40 % copies of 24 of them, 5 % random "
        "characters, 5 % snippets of two words. Medians at the model's first weights, and the share of "
        "garbage (both kinds; 10 % of the pool) among the picks."
    ]
    for key, entry in of_kind(content, "medians").items():
        subject = key.split("/")[1]
        quantities = list(entry[KINDS[0]])
        rows = [
            [kind, *(number(entry[kind][quantity], 2) for quantity in quantities)]
            for kind in KINDS
            if kind != "copy"
        ]
        parts.append(f"`{subject}`:\n\n" + table(["record", *quantities], rows))
        parts.append(_garbage(of_kind(content, f"shares/{subject}")))
    return parts


def _garbage(entries: dict[str, dict[str, Any]]) -> str:
    fractions = [name for name in next(iter(entries.values())) if name.replace(".", "").isdigit()]
    rows = [
        [key.split("/")[2], *(f"{entry[f][KINDS[2]] + entry[f][KINDS[3]]:.1%}" for f in fractions)]
        for key, entry in entries.items()
    ]
    return table(["importance", *(f"picking {float(f):.0%}" for f in fractions)], rows)


# ---- propagation -------------------------------------------------------------------------------------------


def _propagation(content: dict[str, Any]) -> list[str]:
    followed = list(of_kind(content, "followed").values())
    parts = [
        "**Propagation** on a run of the small Llama (120 steps on a random 30 % of the clean pool, 1,200 "
        "records of GSM8K, Dolly and commonsense), refreshed at steps 24, 48, ..., 120. Spearman's "
        "correlation with exact importance over the nodes that a refresh did not measure, on average over "
        "the five refreshes; `none` keeps what was last measured. Below each table, the mean cosine with "
        "exact embeddings, around their mean.",
        _passes(content["entries"]["passes/whole"]["seconds"], followed),
    ]
    for kind in dict.fromkeys(entry["kind"] for entry in followed):
        mine = [entry for entry in followed if entry["kind"] == kind]
        parts.append(f"Importance `{kind}`:\n\n" + _ways(mine, "spearman"))
    some = [entry for entry in followed if entry["kind"] == followed[0]["kind"]]
    parts.append("Embeddings:\n\n" + _ways(some, "cosine"))
    seen = [
        (refresh["seen"], refresh["spearman"])
        for entry in followed
        if entry["propagate"] == "change" and entry["beta"] == 0.5 and entry["drawn"] is None
        for refresh in entry["refreshes"]
        if refresh["seen"] is not None
    ]
    parts.append(f"![agreement over the run](figures/{FIGURE.name})")
    apart = statistics.fmean(s - r for s, r in seen)
    parts.append(
        "What a run sees of this, the agreement at the anchors before their values are replaced, lay "
        f"{apart:+.3f} from the correlation over the rest on average (change, beta 0.5, all shares)."
    )
    return parts


def _passes(passes: list[dict[str, Any]], followed: list[dict[str, Any]]) -> str:
    whole, part = (statistics.fmean(one[name] for one in passes) for name in ("whole", "part"))
    own = statistics.fmean(r["seconds"] for e in followed if e["share"] == 0.1 for r in e["refreshes"])
    return (
        f"A refresh of 10 % of the pool costs {(part + own) / whole:.3f} of an exact pass over all of it "
        f"({part:.1f} s of measuring and {own:.2f} s of propagation and repair, against {whole:.1f} s)."
    )


def _ways(entries: list[dict[str, Any]], what: str) -> str:
    shares = list(dict.fromkeys(entry["share"] for entry in entries))
    found = {(_way(entry), entry["share"]): _mean(r[what] for r in entry["refreshes"]) for entry in entries}
    ways = list(dict.fromkeys(map(_way, entries)))
    rows = [[way, *(f"{found[way, share]:.3f}" for share in shares)] for way in ways]
    return table(["propagated", *(f"{share:.0%} measured" for share in shares)], rows)


def _way(entry: dict[str, Any]) -> str:
    name = f"{entry['propagate']}, beta {entry['beta']:g}" if entry["beta"] else entry["propagate"]
    told = {None: "", 0.0: ", all anchors by priority", 1.0: ", all anchors drawn"}
    return name + told[entry["drawn"]]


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


# ---- the dial ----------------------------------------------------------------------------------------------


def _dial(content: dict[str, Any]) -> list[str]:
    told = (
        "**The dial.** The small Llama on 30 % of the clean pool, 60 steps of 6. Forecast before the first "
        "step, and spent; `share` is deciding over training, with the measuring of speeds in brackets."
    )
    head = [
        "importance, overhead",
        "seed",
        "looked at",
        "refreshes",
        "forecast s",
        "spent s",
        "spent / forecast",
    ]
    rows = [
        [
            f"`{entry['importance']}`, {entry['overhead']:g}", str(entry["seed"]), str(entry["candidates"]),
            str(entry["refreshes"]), f"{entry['forecast']['deciding']:.1f}",
            f"{entry['spent']['deciding']:.1f}",
            f"{entry['spent']['deciding'] / entry['forecast']['deciding']:.2f}",
            f"{entry['share']:.3f} ({entry['share_with_speeds']:.3f})",
        ]
        for entry in of_kind(content, "dial").values()
    ]  # fmt: skip
    return [told, table([*head, "share"], rows)]
