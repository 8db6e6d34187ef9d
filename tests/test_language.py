"""Source, documentation, benchmarks and recipes use the field's own words; a private dialect is banned.

Each entry of `BANNED` is a pattern, what to write instead, and a sentence that the pattern must find.
"""

import ast
import re
from typing import NamedTuple

import pytest

from tests.conftest import ROOT


class Banned(NamedTuple):
    """A phrase that a reader could misunderstand or would have to learn."""

    pattern: str
    instead: str
    example: str


BANNED = [
    Banned(r"(?<!\.)\btold\b", "stats, details, shown, recorded", "What is told of the run."),
    Banned(
        r"\btells? (?:of|apart|noise|whether|what|how)\b", "say, show, distinguish", "It tells of the whole."
    ),
    Banned(r"\banew\b", "again, recompute, score again, re-select", "The selection is made anew."),
    Banned(r"\b(?:go|goes|going|went) on\b", "resume, continue", "A killed pass goes on."),
    Banned(r"\b(?:go|goes|going|went) by\b", "use, follow", "The graph that the order goes by."),
    Banned(r"\blook(?:s|ed|ing)? at\b", "score, evaluate, candidates", "Samples that are looked at."),
    Banned(
        r"\bunless (?:given|told|asked|said|otherwise)\b", "if unset, the default is", "All, unless given."
    ),
    Banned(r"\bput(?:s|ting)? up with\b", "tolerate, at most", "Flaws to put up with."),
    Banned(r"\blast phase\b", "annealing phase", "The samples of the last phase."),
    Banned(
        r"\bfinish(?:es|ing)? (?:the|a) run\b", "annealing phase, end of the run", "What finishes the run."
    ),
    Banned(r"\bsimple things?\b", "baseline", "It beats the simple thing."),
    Banned(r"\bdear(?:er)?\b", "expensive, cost", "Deciding is dear."),
    Banned(r"\bmay be spent\b|\bmay spend\b", "budget", "What may be spent."),
    Banned(r"\b(?:its|their) price\b", "cost", "Its price is a scoring run."),
    Banned(
        r"\b(?:within|twice|beyond|exceed\w*|outside) (?:its|their) errors?\b",
        "standard error, noise",
        "Within its error.",
    ),
    Banned(
        r"\b(?:gradients?|products?|samples?) of (?:its|their) own\b",
        "per-sample gradient",
        "A gradient of its own.",
    ),
    Banned(r"\btried against\b", "checked against", "Every model is tried against autograd."),
    Banned(r"\bmeasuring pass(?:es)?\b", "scoring run", "One batch of a measuring pass."),
    Banned(
        r"(?<!forward )(?<!backward )(?<!gradient )\bpass(?:es)? over\b(?! the time)",
        "scoring run, epoch, forward/backward; skip",
        "One pass over the pool.",
    ),
    Banned(
        r"\b(?:in|per|each|every|single|whole|another|several|two) pass(?:es)?\b(?! (?:the|of|it|them)\b)",
        "epoch, scoring run, forward/backward, micro-batch",
        "Samples per pass.",
    ),
    Banned(
        r"(?<!all )(?<!none )(?<!one )(?<!some )(?<!each )(?<!both )(?<!any )(?<!most )(?<!many )"
        r"\bof which\b",
        "plain order: subject, verb, object",
        "A time, of which deciding took most.",
    ),
    Banned(r"\bso many\b|\bas many (?:again|more)\b", "a number, n", "The first so many records."),
    Banned(r"\b(?:be|is|are|was|were) kept to\b", "be met, be kept", "A budget that cannot be kept to."),
    Banned(r"\bkeeps? to (?:its|the|a) (?:budget|plan)\b", "meet, stay within", "It keeps to the budget."),
    Banned(
        r"\bnothing to lose\b|\bhas had its say\b|\bbooks of\b", "plain words", "There is nothing to lose."
    ),
    Banned(r"\b(?:says?|knows?|hears?) nothing of\b", "plain words", "It says nothing of the rest."),
    Banned(r"\bthere are none\b", "if there are no ...", "None where there are none."),
    Banned(r"\bways? round\b", "both orders, in either direction", "Going both ways round."),
    Banned(r"\b(?:come|comes|came) to (?:its|an|the) end\b", "finish, end", "The run came to its end."),
    Banned(r"\bwhat (?:\w+ )?came (?:of|to)\b", "result, outcome", "What came of the run."),
    Banned(r"\bCrew\b", "worker pool", "class Crew:"),
]

FOLDERS = ("benchmarks", "docs", "recipes", "src", "tests")
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".yml"}


def lines() -> list[tuple[str, str]]:
    """Place and text of every line that a reader may meet."""
    paths = [
        path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES
    ]
    paths += sorted(path for path in ROOT.iterdir() if path.suffix in SUFFIXES)
    found = []
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if name == "tests/test_language.py":
            continue
        text = path.read_text(encoding="utf-8").splitlines()
        found += [(f"{name}:{number}", line) for number, line in enumerate(text, start=1)]
    return found


def names() -> list[tuple[str, str]]:
    """Place and words of every function and class name of several words."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and "_" in node.name:
                    place = f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
                    found.append((place, node.name.replace("_", " ").strip()))
    return found


@pytest.fixture(scope="module")
def every_line() -> list[tuple[str, str]]:
    return lines() + names()


@pytest.mark.parametrize("banned", BANNED, ids=lambda banned: banned.example)
def test_no_banned_phrase(banned: Banned, every_line: list[tuple[str, str]]) -> None:
    pattern = re.compile(banned.pattern, re.IGNORECASE)
    found = [f"{place}: {line.strip()[:90]}" for place, line in every_line if pattern.search(line)]
    assert not found, f"write {banned.instead!r} instead:\n" + "\n".join(found[:40])


@pytest.mark.parametrize("banned", BANNED, ids=lambda banned: banned.example)
def test_every_pattern_finds_its_example(banned: Banned) -> None:
    assert re.search(banned.pattern, banned.example, re.IGNORECASE)


def test_ordinary_english_is_not_banned() -> None:
    """Sentences as the documentation of other libraries has them."""
    for line in (
        "A forward pass over the batch; pass the model to the trainer.",
        "Two arrays, both of which have n rows; its error message names the key.",
        "In passing: each passes the check. `selection.told` is an attribute.",
        "The tests pass; a goal, an only child, ongoing work.",
    ):
        assert not [banned.pattern for banned in BANNED if re.search(banned.pattern, line, re.IGNORECASE)], (
            line
        )
