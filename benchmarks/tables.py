"""What the tables of all benchmarks have in common: Markdown, numbers, rows of paired comparisons."""

from typing import Any

from frame import Comparison

COMPARISON_HEAD = ["arm", "pairs", "difference", "95 % interval", "p (Holm)", "verdict"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def comparison_row(one: Comparison) -> list[str]:
    """A row below `COMPARISON_HEAD`."""
    interval = f"{one.interval[0]:+.4f} to {one.interval[1]:+.4f}" if one.interval else "-"
    p = "< 0.001" if one.p is not None and one.p < 0.001 else number(one.p, 3)
    return [f"`{one.arm}`", str(one.seeds), f"{one.difference:+.4f}", interval, p, one.verdict]


def number(value: float | None, digits: int) -> str:
    """With so many digits behind the point; a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def of_kind(content: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """Entries of a result file whose key starts with `kind/`."""
    return {key: entry for key, entry in content["entries"].items() if key.startswith(f"{kind}/")}
