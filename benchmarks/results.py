"""Writes docs/results.md from the result files: one section per file, nothing by hand.

    python benchmarks/results.py            # docs/results.md from benchmarks/results/*.json
    python benchmarks/results.py --check    # only say whether it is up to date (exit code 1 if not)

A new benchmark adds the function that makes its tables to `TABLES`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare_tables
import d3_tables
import direct_tables
import grace_tables
import layer_tables
import signals_tables
from frame import RESULTS, ROOT

from gradwise.atomic import write_text

PAGE = ROOT / "docs" / "results.md"

TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "compare": ("Compare: selections, orders and layer policies at equal cost", compare_tables.sections),
    "d3": ("D3: edges that know the order, planted orders, cost, solver", d3_tables.sections),
    "direct": ("DiReCT: solvers, size, curvature, the decay phase", direct_tables.sections),
    "grace": ("GRACE: speed, size, garbage, propagation, the dial", grace_tables.sections),
    "layers": ("Layers: LISA and GRASS against full training and LoRA", layer_tables.sections),
    "signals": ("Signals: cost, accuracy, peers", signals_tables.sections),
}
"""By the name of a benchmark: its heading, and what makes paragraphs of a result file."""

HEAD = """# Results

Written by `python benchmarks/results.py` from the files in `benchmarks/results`; do not edit. Differences are
paired by seed. 'better' and 'worse' mean p < 0.05 after Holm's correction over the arms of the table;
everything else is called 'no difference seen', which is not the same as 'equal': with few seeds only large
differences can be seen. A gain is claimed from five seeds on; with fewer, a verdict is what the table shows
and no more."""


def page(folder: Path) -> str:
    """The whole page, from the result files of a folder in the order of their names."""
    parts = [HEAD]
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        title, sections = TABLES[content["benchmark"]]
        parts += [f"## {title} ({path.stem})", *sections(content), origin(content, path.name)]
    return "\n\n".join(parts) + "\n"


def origin(content: dict[str, Any], name: str) -> str:
    """How the numbers came about: commands, machine, versions, revisions, dates."""
    last = content["sessions"][-1]
    loads = [entry["load_average"] for entry in content["entries"].values()]
    lines = [f"**Origin** (`benchmarks/results/{name}`):", ""]
    for session in _told_apart(content):
        threads = session["machine"]["threads"]
        lines.append(
            f"- {session['date']}: `{session['command']}`, {_revision(session)}, "
            f"{threads} thread{'s' if threads > 1 else ''}"
        )
    machine = last["machine"]
    lines.append(
        f"- {machine['processor']}, {machine['processors']} cores, {machine['memory_gib']} GiB, "
        f"{machine['platform']}; "
        f"load average while measuring {min(loads):.1f} to {max(loads):.1f} (this benchmark's own included)"
    )
    lines.append("- " + ", ".join(f"{package} {number}" for package, number in last["versions"].items()))
    return "\n".join(lines)


def _revision(session: dict[str, Any]) -> str:
    changed = len(session["changed_source"])
    told = f"revision {(session['revision'] or 'unknown')[:12]}"
    told += f" with {changed} changed source files" if changed else ""
    return f"{told} (sources {session['source_digest']})"


def _told_apart(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The sessions that any entry comes from."""
    used = sorted({entry["session"] for entry in content["entries"].values()})
    return [content["sessions"][number] for number in used]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where the page is out of date"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args()
    made = page(options.results)
    if not options.check:
        write_text(options.page, made)
    elif not options.page.exists() or options.page.read_text() != made:
        sys.exit(f"{options.page} is out of date; run: python benchmarks/results.py")


if __name__ == "__main__":
    main()
