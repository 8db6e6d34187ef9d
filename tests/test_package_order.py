"""Imports point one way: a package uses only those before it, and nothing outside `methods` asks for a
method's class."""

import ast
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gradwise"

ORDER = [
    "text",
    "errors",
    "atomic",
    "console",
    "plain",
    "settings",
    "locks",
    "temporary",
    "places",
    "precision",
    "ranks",
    "folders",
    "stored",
    "structure",
    "stopping",
    "failures",
    "numerics",
    "data",
    "signals",
    "probing",
    "methods",
    "evaluation",
    "recipe",
    "training",
    "planning",
    "integrations",
    "host",
    "resuming",
    "switching",
    "session",
    "session_trainer_loader",
    "session_callback",
    "trainer",
    "report",
    "run",
    "estimating",
    "comparison",
    "demo",
    "cli",
    "__main__",
]
"""Packages and modules of `gradwise`, each after all that it uses."""

LARGEST_SHARE_OF_ANY = 0.05
"""Largest share of annotated parameters whose type is Any."""

CLASSES = "Grace|D3|Direct|Grass|LayerPolicy|AllLayers|Subset|Annealer|Selector|Orderer|InfluenceOrder|Phase"


def _parts() -> dict[str, list[Path]]:
    """The files of each package or module."""
    parts: dict[str, list[Path]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if name != "__init__":  # only names, looked up on first use
            parts.setdefault(name, []).append(path)
    return parts


def _imported(path: Path) -> set[str]:
    """Packages of `gradwise` that a file imports, also within functions and for types."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("gradwise.")}


def test_every_part_has_its_place() -> None:
    assert set(_parts()) == set(ORDER)


@pytest.mark.parametrize("part", ORDER)
def test_no_import_points_up(part: str) -> None:
    above = set(ORDER[ORDER.index(part) + 1 :])
    up = {path.name: _imported(path) & above for path in _parts()[part]}
    assert not {name: parts for name, parts in up.items() if parts}


def test_parameters_say_what_they_are() -> None:
    """Few are `Any`: what is nested YAML, somebody else's model, or a value of any kind."""
    annotations = [
        argument.annotation
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if argument.annotation is not None
    ]
    untyped = sum(isinstance(each, ast.Name) and each.id == "Any" for each in annotations)
    assert untyped < LARGEST_SHARE_OF_ANY * len(annotations)


def test_no_two_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in names.items() if count > 1]


def test_local_names_say_what_values_are() -> None:
    """And not how they came."""
    avoided = {"found", "own", "given", "known"}
    nodes = [
        (path.name, node)
        for path in SOURCE.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    ]
    names = [(file, node.arg) for file, node in nodes if isinstance(node, ast.arg)]
    names += [
        (file, node.id)
        for file, node in nodes
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    assert len(names) > 1000
    assert not [name for name in names if name[1] in avoided]


def test_comments_say_why() -> None:
    """On at least 3 % of all lines."""
    comments = lines = 0
    for path in SOURCE.rglob("*.py"):
        with path.open("rb") as file:
            comments += sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(file.readline))
        lines += path.read_text(encoding="utf-8").count("\n")
    assert comments >= 0.03 * lines


def test_signals_and_their_store_do_not_import_each_other() -> None:
    text = (SOURCE / "signals" / "store.py").read_text(encoding="utf-8")
    assert "signals.quantities" not in text


def test_nothing_outside_methods_asks_which_method_it_has() -> None:
    asks = re.compile(
        rf"isinstance\([^()]*,[^()]*\b({CLASSES})\b|\.method (==|!=|in) |order\.units is (not )?None"
    )
    found = [
        f"{path.relative_to(SOURCE)}: {match.group()}"
        for path in SOURCE.rglob("*.py")
        if "methods" not in path.parts
        for match in asks.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found
    assert asks.search("if isinstance(recipe.select, Grace):") and asks.search('order.method == "d3"')
