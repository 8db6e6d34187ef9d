"""Relevance to a target is by middle embeddings, where they were collected."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gradwise as gw
from gradwise.errors import CheckpointError, SignalError
from gradwise.methods.grace.state import State
from gradwise.signals import Signals

GRACE = gw.Grace(count=6, target="target", neighbours=4)


def made(seed: int, count: int, **more: Any) -> Signals:
    rng = np.random.default_rng(seed)
    return Signals(
        count,
        embedding=rng.standard_normal((count, 8), dtype=np.float32),
        middle_embedding=rng.standard_normal((count, 8), dtype=np.float32),
        num_tokens=np.full(count, 5, dtype=np.int32),
        **more,
    )


def without(signals: Signals, name: str) -> Signals:
    return replace(signals, **{name: None})


def picks(pool: Signals, target: Signals, *, method: gw.Grace = GRACE) -> list[int]:
    return method.select(pool, target=target).indices.tolist()


def test_what_each_kind_of_importance_needs() -> None:
    assert GRACE.needs == {"middle_embedding", "num_tokens", "texts"}
    by_grads = replace(GRACE, importance="alignment").needs
    assert {"embedding", "grad"} <= by_grads and "middle_embedding" not in by_grads
    assert "middle_embedding" not in gw.Grace(count=6).needs


@pytest.mark.parametrize("seed", range(3))
def test_the_middle_ones_decide_where_both_sets_have_them(seed: int) -> None:
    pool, target = made(seed, 40), made(seed + 100, 9)
    middle = picks(pool, target)
    as_embeddings = [
        Signals(len(each), embedding=each.middle_embedding, num_tokens=each.num_tokens)
        for each in (pool, target)
    ]
    assert middle == picks(*as_embeddings)
    assert middle == picks(without(pool, "embedding"), without(target, "embedding"))
    assert middle != picks(without(pool, "middle_embedding"), without(target, "middle_embedding"))


@pytest.mark.parametrize("which", ["pool", "target", "both"])
def test_the_others_decide_where_a_set_has_no_middle_ones(which: str) -> None:
    pool, target = made(0, 40), made(100, 9)
    plain = picks(without(pool, "middle_embedding"), without(target, "middle_embedding"))
    some = (
        without(pool, "middle_embedding") if which != "target" else pool,
        without(target, "middle_embedding") if which != "pool" else target,
    )
    assert picks(*some) == plain


def test_sets_that_have_none_in_common_are_refused() -> None:
    pool, target = made(0, 40), made(100, 9)
    with pytest.raises(SignalError, match="of the target samples, needs the signal 'middle_embedding'"):
        picks(without(pool, "embedding"), without(target, "middle_embedding"))
    with pytest.raises(SignalError, match="grace needs the signal 'middle_embedding'"):
        picks(without(pool, "middle_embedding"), without(target, "embedding"))
    with pytest.raises(SignalError, match=r"grace needs the signal 'middle_embedding'.*the method itself"):
        picks(*(without(without(each, "embedding"), "middle_embedding") for each in (pool, target)))


def test_alignment_does_not_mind_them() -> None:
    rng = np.random.default_rng(3)
    pool, target = (made(n, n, grad=rng.standard_normal((n, 5), dtype=np.float32)) for n in (40, 9))
    method = replace(GRACE, importance="alignment")
    assert picks(pool, target, method=method) == picks(
        without(pool, "middle_embedding"), without(target, "middle_embedding"), method=method
    )


def begun(pool: Signals, target: Signals) -> State:
    state = GRACE.begin(pool, target=target)
    return State.of_arrays(state.arrays())  # through a checkpoint


def test_a_refresh_compares_what_the_first_selection_compared() -> None:
    pool, target = made(0, 40), made(100, 9)
    anchors = np.arange(0, 40, 4)
    moved, aims = made(1, 40).take(anchors), made(101, 9)
    late = begun(without(pool, "middle_embedding"), without(target, "middle_embedding"))
    middle = begun(pool, target)
    assert (middle.middle, late.middle) == (True, False)
    for state, name in ((middle, "middle_embedding"), (late, "embedding")):
        after = GRACE.refresh(state, anchors, moved, 5, target=aims).state
        np.testing.assert_array_equal(after.embedding[anchors], getattr(moved, name))
        assert after.middle == state.middle
        other = "embedding" if state.middle else "middle_embedding"
        with pytest.raises((SignalError, CheckpointError)):
            GRACE.refresh(state, anchors, without(moved, name), 5, target=aims)
        with_less = [without(each, other) for each in (moved, aims)]
        alone = GRACE.refresh(state, anchors, with_less[0], 5, target=with_less[1]).state
        np.testing.assert_array_equal(after.importance, alone.importance)


def test_a_checkpoint_of_an_earlier_version_is_refused() -> None:
    pool, target = made(0, 40), made(100, 9)
    state = begun(without(pool, "middle_embedding"), without(target, "middle_embedding"))
    arrays = state.arrays()
    del arrays["middle"]
    old = State.of_arrays(arrays)
    anchors = np.arange(0, 40, 4)
    moved, aims = (without(each, "embedding") for each in (made(1, 40).take(anchors), made(101, 9)))
    with pytest.raises(CheckpointError, match="of an earlier version, which measured another relevance"):
        GRACE.refresh(old, anchors, moved, 5, target=aims)
