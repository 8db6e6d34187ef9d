"""The user's own metrics: found and called, and every way in which they fail named in a sentence."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradwise import RecipeError
from gradwise.evaluation import EvaluationError, Function, Score
from gradwise.evaluation.functions import call, import_function

SOURCE = """
import math
from dataclasses import dataclass
from beside import FIVE
import torch, numpy

@dataclass
class Config:
    x: int = 3

not_callable = 3
def number(model, tokenizer, validation): return FIVE
def integer(model, tokenizer, validation=None): return 3
def tensor(model, tokenizer, validation): return torch.tensor([0.5])
def scalar(model, tokenizer, validation): return numpy.float32(0.5)
def mapping(model, tokenizer, validation): return {"a": 1, "b/c": 2.5}
def named(*everything): return len(everything)
def short(model): return 1.0
def more(model, tokenizer, validation, other): return 1.0
def broken(model, tokenizer, validation):
    raise KeyError("a column")
def nothing(model, tokenizer, validation): pass
def text(model, tokenizer, validation): return "0.5"
def nan(model, tokenizer, validation): return math.nan
def infinite(model, tokenizer, validation): return {"a": 1.0, "b": math.inf}
def several(model, tokenizer, validation): return torch.ones(2)
def large(model, tokenizer, validation): return 10**400
def larger(model, tokenizer, validation): return 10**5000
def empty(model, tokenizer, validation): return {}
"""

Measure = Callable[..., dict[str, Score]]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    (tmp_path / "metrics.py").write_text(SOURCE)
    (tmp_path / "beside.py").write_text("FIVE = 5.0\n")

    def measure(function: str, validation: Any = None, **settings: Any) -> dict[str, Score]:
        setting = Function(path=f"{tmp_path}/metrics.py:{function}", **settings)
        tokenizer: Any = "tokenizer"
        return call(setting, import_function(setting), "model", tokenizer, validation)

    return measure


@pytest.fixture(autouse=True)
def clean() -> Any:
    before = list(sys.path), set(sys.modules)
    yield
    assert sys.path == before[0]
    for name in set(sys.modules) - before[1]:
        if name == "beside" or name.startswith("metrics_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("number", {"number": 5.0}),
        ("integer", {"integer": 3.0}),
        ("tensor", {"tensor": 0.5}),
        ("scalar", {"scalar": 0.5}),
        ("mapping", {"mapping/a": 1.0, "mapping/b/c": 2.5}),
        ("named", {"named": 3.0}),
    ],
)
def test_numbers_and_mappings_of_numbers(measure: Measure, name: str, values: dict[str, float]):
    assert measure(name) == {key: Score(value, "higher", 0) for key, value in values.items()}


def test_direction_samples_and_name(measure: Measure):
    assert measure("number", [1, 2, 3], better="lower", name="five") == {"five": Score(5.0, "lower", 3)}


def test_of_an_installed_package():
    assert import_function(Function(path="os.path:join")).__name__ == "join"


def test_takes_what_the_user_gave(tmp_path: Path):
    (tmp_path / "seen.py").write_text("def seen(*given):\n    global got\n    got = given\n    return 1\n")
    function = import_function(Function(path=f"{tmp_path}/seen.py:seen"))
    tokenizer: Any = "t"
    call(Function(path="seen.py:seen"), function, "m", tokenizer, "v")
    assert function.__globals__["got"] == ("m", "t", "v")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "not_there",
            "not_there is not there in .*metrics.py; write def not_there(model, tokenizer, validation)",
        ),
        ("not_callable", "not_callable is not callable"),
        ("short", "metrics.py:short must take (model, tokenizer, validation); it takes (model)."),
        ("more", "it takes (model, tokenizer, validation, other)."),
    ],
)
def test_mistakes_before_training(measure: Measure, name: str, message: str):
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(RecipeError, match=rf"^metrics\.functions: .*{pattern}"):
        measure(name)


def test_a_file_or_package_that_is_not_there(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"none\.py cannot be imported \(FileNotFoundError: no file .*none"):
        import_function(Function(path=f"{tmp_path}/none.py:x"))
    with pytest.raises(RecipeError, match=r"no_such_package\.x cannot be imported \(ModuleNotFoundError"):
        import_function(Function(path="no_such_package.x:y"))


def test_a_file_that_does_not_run(tmp_path: Path):
    (tmp_path / "bad.py").write_text("import os\n\n1 / 0\n")
    with pytest.raises(RecipeError, match=r"\(ZeroDivisionError: division by zero; bad\.py, line 3\)"):
        import_function(Function(path=f"{tmp_path}/bad.py:x"))
    assert not [name for name in sys.modules if name.startswith("bad_")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "The metric broken failed (KeyError: 'a column'; metrics.py, line 21)."),
        ("nothing", "The metric nothing is not a finite number; found None."),
        ("text", "The metric text is not a finite number; found '0.5'."),
        ("nan", "The metric nan is not a finite number; found nan."),
        ("infinite", "The metric infinite/b is not a finite number; found inf."),
        ("several", "The metric several is not a finite number; found tensor([1., 1.])."),
        ("large", f"The metric large is not a finite number; found 1{'0' * 96}...."),
        ("larger", "The metric larger is not a finite number; found a large int."),
        ("empty", "The metric empty gave a mapping without a number in it."),
    ],
)
def test_failures_after_training(measure: Measure, name: str, message: str):
    with pytest.raises(EvaluationError, match=f"^{re.escape(message)}$"):
        measure(name)


@pytest.mark.parametrize("path", ["metrics.py", ":f", "metrics.py:", "metrics.py:a b"])
def test_a_path_without_a_function(path: str):
    with pytest.raises(RecipeError, match=r"names no function; write path/to/file\.py:function or"):
        Function(path=path)
