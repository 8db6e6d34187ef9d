"""What the first rank does for all, and how all learn of a failure; nothing hangs."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from gradwise import CheckpointError, DataError, GradwiseError
from gradwise.folders import LOCK, MARKER, claimed
from gradwise.ranks import (
    check_same,
    connected,
    gathered,
    is_first,
    on_each,
    on_first,
    raised_everywhere,
    rank,
    wait_for_all,
    world_size,
)
from gradwise.training.record import NonFiniteError
from tests.signals.processes import ended, start_ranks

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def on_ranks(count: int, folder: Path, work: Callable[..., None], *arguments: Any) -> None:
    assert [ended(process) for process in start_ranks(count, folder, work, *arguments)] == [0] * count


class Local:
    """Equal to nothing, and cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("stays here")


def _first(number: int, folder: Path) -> None:
    assert (rank(), world_size(), connected(), is_first()) == (number, 3, (number, 3), number == 0)
    value = on_first(lambda: (folder / str(rank())).touch() or rank() + 7)
    assert value == 7
    assert [path.name for path in folder.iterdir()] == ["0"]
    assert gathered(number) == [0, 1, 2]


def test_the_first_works_and_all_get_the_result(tmp_path: Path):
    (tmp_path / "work").mkdir()
    on_ranks(3, tmp_path, _first, tmp_path / "work")


def _failing(number: int) -> None:
    def fail(error: BaseException) -> Any:
        raise error

    errors = (CheckpointError("no room"), KeyboardInterrupt(), NonFiniteError(3, "loss", float("nan")))
    for error in errors:
        try:
            on_first(lambda error=error: fail(error))
        except BaseException as caught:
            assert str(caught) == str(error)
            assert isinstance(caught, GradwiseError | KeyboardInterrupt)
            assert raised_everywhere(caught)
        else:
            raise AssertionError("nothing was raised")
    # A failure of any rank, the first one among them, is a failure of all.
    for failing in range(3):
        try:
            on_each(lambda failing=failing: fail(DataError(f"of {number}")) if number == failing else number)
        except DataError as caught:
            assert str(caught) == f"of {failing}"
        else:
            raise AssertionError("nothing was raised")
    assert on_each(lambda: Local()).__class__ is Local
    wait_for_all()


def test_all_fail_where_one_does(tmp_path: Path):
    on_ranks(3, tmp_path, _failing)


def _different(number: int) -> None:
    check_same("the same", "The data")
    try:
        check_same(number == 1, "The data")
    except GradwiseError as error:
        assert str(error) == "The data differ between rank 0 and rank 1; give all ranks the same files."
    else:
        raise AssertionError("nothing was raised")


def test_what_must_be_the_same(tmp_path: Path):
    on_ranks(2, tmp_path, _different)


def _claiming(number: int, folder: Path) -> None:
    with claimed(folder / "run", "run", ("a",)) as owned:
        assert owned.writes == (number == 0)
        if number == 0:
            (folder / "run" / "a").touch()
        wait_for_all()
        assert {path.name for path in (folder / "run").iterdir()} == {"a", MARKER, LOCK}
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / "file").touch()
    wait_for_all()
    try:
        with claimed(folder / "mine", "run"):
            pass
    except GradwiseError as error:
        assert "did not write (file)" in str(error)
    else:
        raise AssertionError("claimed")


def test_a_folder_is_claimed_once(tmp_path: Path):
    on_ranks(2, tmp_path, _claiming, tmp_path)


def _lost(number: int) -> None:
    from gradwise.ranks import lost_connection

    if number == 1:
        time.sleep(0.1)
        os._exit(0)
    try:
        on_first(lambda: 1)
        on_each(lambda: 1)
    except RuntimeError as error:
        assert lost_connection(error), repr(error)
        assert not lost_connection(RuntimeError("shape mismatch"))
        os._exit(0)
    raise AssertionError("nothing was raised")


def test_a_lost_rank_is_recognised(tmp_path: Path):
    on_ranks(2, tmp_path, _lost)


def test_a_single_process_just_works(monkeypatch: pytest.MonkeyPatch):
    assert on_first(lambda: 3) == on_each(lambda: 3) == 3
    assert gathered(3) == [3]
    check_same(object(), "This")
    with pytest.raises(DataError) as caught:
        on_first(lambda: (_ for _ in ()).throw(DataError("x")))
    assert not raised_everywhere(caught.value)
    # As torchrun sets them, before the processes are connected.
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (rank(), world_size(), is_first(), connected()) == (2, 4, False, (0, 1))
    assert not dist.is_initialized()
