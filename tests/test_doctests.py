"""The examples in the docstrings hold."""

import doctest
import importlib
import pkgutil

import pytest

import gradwise

FOUND = pkgutil.walk_packages(gradwise.__path__, "gradwise.")
MODULES = [name for _, name, _ in FOUND if "__main__" not in name]
INSTALLED = [name for name in MODULES if ".integrations." not in name]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = pytest.importorskip(name) if ".integrations." in name else importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


def test_there_are_examples() -> None:
    found = [
        test for name in INSTALLED for test in doctest.DocTestFinder().find(importlib.import_module(name))
    ]
    assert sum(bool(test.examples) for test in found) >= 10
