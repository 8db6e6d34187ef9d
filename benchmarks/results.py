"""Writes docs/results from the result files: a page per file, the index of all claims, and the figures.

    python -m benchmarks.results            # docs/results from benchmarks/results/*.json
    python -m benchmarks.results --check    # writes nothing; exit code 1 if a page is out of date

A new benchmark adds its module to `PAGES`. The module has `page(content)`, and `draw(content, folder)` for
its figures.
"""

import argparse
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType

from benchmarks import overview
from benchmarks.common.folders import RESULTS, ROOT
from benchmarks.common.tables import Claim, Content, Page, plural, table
from benchmarks.compare import page as compare
from benchmarks.d3 import commutator, planted, printed_rule, published
from benchmarks.d3 import cost as d3_cost
from benchmarks.d3 import solver as d3_solver
from benchmarks.direct import curvature, decay, junk, sketch, target
from benchmarks.direct import million as direct_million
from benchmarks.direct import solver as direct_solver
from benchmarks.gpu import page as gpu
from benchmarks.grace import importance, llama_targets, million, overhead, propagation, speed, targets, words
from benchmarks.layers import estimate, estimate_time
from benchmarks.layers import page as layers
from benchmarks.robustness import data as robustness_data
from benchmarks.signals import accuracy, cost, peers, precondition, store
from gradwise.atomic import write_text

DOCS = ROOT / "docs" / "results"

PAGES: dict[str, ModuleType] = {
    "compare": compare,
    "signals-cost": cost, "signals-accuracy": accuracy, "signals-precondition": precondition,
    "signals-peers": peers, "signals-store": store,
    "grace-speed": speed, "grace-million": million, "grace-importance": importance,
    "grace-propagation": propagation, "grace-overhead": overhead, "grace-words": words,
    "grace-targets": targets, "grace-llama_targets": llama_targets,
    "d3-commutator": commutator, "d3-planted": planted, "d3-cost": d3_cost, "d3-solver": d3_solver,
    "d3-published": published, "d3-printed_rule": printed_rule,
    "direct-solver": direct_solver, "direct-million": direct_million, "direct-curvature": curvature,
    "direct-sketch": sketch, "direct-decay": decay, "direct-target": target, "direct-junk": junk,
    "layers": layers, "estimate-memory": estimate, "estimate-time": estimate_time,
    "robustness-data": robustness_data,
}  # fmt: skip
"""By the start of the result file's name; in the order of the index."""

READING = (
    "Differences are paired by seed. 'better' and 'worse' mean p < 0.05 after Holm's correction over the "
    "arms of a table, and the 95 % intervals are corrected to agree with that. Everything else is 'no "
    "difference seen', which does not mean 'equal': with few seeds only large differences are visible. A "
    "gain is claimed from five seeds on; with fewer, the verdict is preliminary and only describes the table."
)
INDEX = f"""# Results

One row per claim; each page has the tables, the settings, and the command that reproduces them. Written by
`python -m benchmarks.results` from the files in `benchmarks/results`; do not edit. Losses are in nats per
token, and negative differences mean that the first arm is better. {READING}"""


def pages(folder: Path) -> dict[str, str]:
    """Content of every page by file name, from the result files of a folder."""
    written, rows = {}, []
    for path in _sorted(folder):
        content, module = json.loads(path.read_text()), module_of(path)
        page: Page = module.page(content)
        written[f"{path.stem}.md"] = _text(page, module, f"`benchmarks/results/{path.name}`", origin(content))
        rows += _rows(page, path.stem)
    kit = gpu.read()
    page = gpu.page(kit)
    written["gpu.md"] = _text(page, gpu, "the files in `benchmarks/gpu/results`", gpu.origin(kit))
    rows += _rows(page, "gpu")
    index = table(["claim", "number", "seeds", "verdict", "page"], rows)
    return {"index.md": f"{INDEX}\n\n{index}\n", **written}


def _rows(page: Page, name: str) -> list[list[str]]:
    """The page's rows of the index."""
    link = f"[{name}]({name}.md)"
    return [[claim.text, claim.number, claim.seeds, claim.verdict, link] for claim in page.claims]


def claims(folder: Path) -> list[Claim]:
    """All claims of a folder's result files, in the order of the index."""
    return [claim for path in _sorted(folder) for claim in _page(path).claims]


def _page(path: Path) -> Page:
    return module_of(path).page(json.loads(path.read_text()))


def _text(page: Page, module: ModuleType, source: str, ending: str) -> str:
    summary, *details = _prose(module)
    title = page.title or re.split("[:.?]", summary)[0]
    command = page.command or f"python -m {module.__name__}"
    written = f"Written from {source} by `python -m benchmarks.results`; do not edit."
    parts = [f"# {title}", f"Reproduce: `{command}`. {written}", *details, *page.sections]
    if any("p (Holm)" in section for section in page.sections):
        parts.append(READING)
    return "\n\n".join([*parts, ending]) + "\n"


def _prose(module: ModuleType) -> list[str]:
    """Paragraphs of a docstring without code blocks; only the first of a module that does not measure."""
    paragraphs = (inspect.getdoc(module) or "").split("\n\n")
    prose = [" ".join(part.split("\n")) for part in paragraphs if not part.startswith("    ")]
    return prose if hasattr(module, "SCRIPT") else prose[:1]


def module_of(path: Path) -> ModuleType:
    """The module that writes a result file's page."""
    return PAGES[_start(path)]


def _start(path: Path) -> str:
    return next(start for start in PAGES if path.stem.startswith(start))


def _sorted(folder: Path) -> list[Path]:
    order = list(PAGES)
    return sorted(folder.glob("*.json"), key=lambda path: (order.index(_start(path)), path.stem))


def origin(content: Content) -> str:
    """Where the numbers come from: commands, machines, versions, revisions, dates."""
    entries = content["entries"].values()
    loads = [entry["load_average"] for entry in entries]
    used = [content["sessions"][number] for number in sorted({entry["session"] for entry in entries})]
    machines = list(dict.fromkeys(map(_machine, used)))
    load = f"load average {min(loads):.1f} to {max(loads):.1f}, this benchmark's own included"
    if len(machines) == 1:
        sessions, ((hardware, versions),) = map(_session, used), machines
        which, setups = "the machine and the versions", [f"{hardware}; {load}", versions]
    else:
        sessions = [f"{_session(one)}, machine {machines.index(_machine(one)) + 1}" for one in used]
        which = "the machines and their versions"
        setups = [f"machine {n}: {'; '.join(one)}" for n, one in enumerate(machines, 1)] + [load]
    head = f"Each session with its command as it was at that revision, then {which}."
    return "\n".join(["## Origin", "", head, "", *(f"- {line}" for line in [*sessions, *setups])])


def _machine(session: Content) -> tuple[str, str]:
    """Hardware and versions of a session."""
    machine, versions = session["machine"], session["versions"]
    return (
        f"{machine['processor']}, {machine['processors']} cores, {machine['memory_gib']} GiB, "
        f"{machine['platform']}",
        ", ".join(f"{package} {number}" for package, number in versions.items()),
    )


def _session(session: Content) -> str:
    changed = len(session["changed_source"])
    revision = f"revision {(session['revision'] or 'unknown')[:12]}"
    revision += f" with {plural(changed, 'changed source file')}" if changed else ""
    threads = plural(session["machine"]["threads"], "thread")
    revision += f" (sources {session['source_digest']})"
    return f"{session['date']}: `{session['command']}`, {revision}, {threads}"


def draw(results: Path, folder: Path) -> None:
    """All figures."""
    for path in _sorted(results):
        module = module_of(path)
        if hasattr(module, "draw"):
            module.draw(json.loads(path.read_text()), folder)


def outdated(written: dict[str, str], folder: Path) -> list[str]:
    """Pages whose file differs or is missing, and files that no result file belongs to."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in written.keys() | there.keys() if written.get(name) != there.get(name))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--pages", type=Path, default=DOCS, help="folder of the pages")
    options = parser.parse_args(arguments)
    written = pages(options.results)
    names = outdated(written, options.pages)
    if options.check:
        if names:
            sys.exit(f"Out of date: {', '.join(names)}; run: python -m benchmarks.results")
        return
    options.pages.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in written:
            write_text(options.pages / name, written[name])
        else:
            (options.pages / name).unlink()
    draw(options.results, options.pages / "figures")
    if options.pages == DOCS:
        overview.draw(claims(options.results))


if __name__ == "__main__":
    main()
