"""The names that other programs call; listing them imports nothing heavy."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gradwise

HEAVY = ("torch", "transformers", "datasets", "numpy", "peft", "scipy")


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("name", gradwise.__all__)
def test_every_public_name_can_be_had_and_is_what_it_says(name: str):
    found: Any = getattr(gradwise, name)
    assert found.__name__.rsplit(".", 1)[-1] == name
    assert found.__doc__


def test_all_is_what_dir_shows():
    assert len(set(gradwise.__all__)) == len(gradwise.__all__)
    assert dir(gradwise) == sorted([*gradwise.__all__, "__version__"])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'gradwise' has no attribute 'Gras'"):
        gradwise.Gras  # type: ignore[attr-defined]  # noqa: B018


def test_errors_have_one_root():
    errors = [getattr(gradwise, name) for name in gradwise.__all__ if name.endswith("Error")]
    assert len(errors) == 7
    assert all(issubclass(error, gradwise.GradwiseError) for error in errors)


@pytest.mark.parametrize("imported", ["gradwise", "gradwise.cli", "gradwise.errors"])
def test_importing_is_light(imported: str):
    loaded = python(f"import sys, json, {imported}; print(json.dumps(sorted(sys.modules)))")
    assert not {module.split(".")[0] for module in json.loads(loaded)} & set(HEAVY)


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("train", None, "Cannot read the recipe"),
        ("compare", None, "Cannot read the recipe"),
        *(
            pytest.param(name, None, "Cannot read the recipe", marks=[pytest.mark.exhaustive])
            for name in ("collect", "select", "order")
        ),
        (
            "train",
            "trian: {epochs: 1}\nselect: {method: grace, fractoin: 0.1}",
            "unknown key select.fractoin",
        ),
        ("train", "train: {epochs: many, logging_steps: 1}", "train.epochs: input should be a valid number"),
    ],
)
def test_a_mistake_in_a_recipe_is_answered_without_the_libraries(
    tmp_path: Path, command: str, text: str | None, said: str
):
    """Importing torch and transformers takes seconds."""
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    arms = ["--arms", "full"] if command == "compare" else []
    code = f"""
import json, sys
sys.argv = ["gradwise", {command!r}, {str(path)!r}, *{arms!r}]
from gradwise.cli import main
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, sorted(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    exit_code, loaded = json.loads(done.stdout)
    assert exit_code == 2 and said in done.stderr
    assert not {module.split(".")[0] for module in loaded} & {"torch", "transformers", "datasets", "peft"}


def test_the_version_is_the_one_installed():
    assert importlib.metadata.version("gradwise") == gradwise.__version__
