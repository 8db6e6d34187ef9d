"""A comparison's folder for the tests of pages."""

from pathlib import Path

import pytest

from tests.report.synthetic import Folder


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """Three arms of three seeds: the reference, one that is better, and one that is not."""
    folder = Folder(tmp_path)
    for seed in range(3):
        folder.run("full", seed, 3.0 + seed / 100)
        folder.run("better", seed, 2.5 + seed / 90)
        folder.run("same", seed, 3.0 + (seed - 1) / 10, rise=0.5)
    return folder.comparison(["full", "better", "same"])
