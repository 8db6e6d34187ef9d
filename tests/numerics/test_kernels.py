"""Compiled kernels, threads and parts."""

import subprocess
import sys

import numba.core.caching
import numpy as np
import pytest
import torch

from gradwise.numerics.kernels import compiled, in_threads, parts


def increment(x: np.ndarray) -> None:
    for i in range(len(x)):
        x[i] += 1


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package in a read-only folder, run by a user without a home: numba finds no folder for its cache."""
    monkeypatch.setattr(numba.core.caching.CompileResultCacheImpl, "_locator_classes", [])
    kernel, x = compiled(increment), np.zeros(3)
    kernel(x)
    assert x.tolist() == [1, 1, 1]


def test_every_module_can_be_imported_there() -> None:
    code = (
        "import numba.core.caching as caching, numpy as np\n"
        "caching.CompileResultCacheImpl._locator_classes = []\n"
        "import gradwise.numerics, gradwise.numerics.facility\n"
        "from gradwise.numerics.ngrams import Counts, word_ids\n"
        "print(int(Counts.of([word_ids(['one two one'])], 64).total.sum()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_threads_cover_the_range_once(threads: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    visited = np.zeros(count)
    in_threads(lambda start, stop: increment(visited[start:stop]), count)
    assert visited.tolist() == [1] * count


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda start, _: 1 // start, 4)


def test_parts_are_consecutive() -> None:
    assert [np.arange(7)[part].tolist() for part in parts(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(parts(0, 3)) == []
