"""Samples that cannot be measured are named and set aside; nobody else notices."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from gradwise import SignalError, Signals
from gradwise.signals import collect
from gradwise.signals.engine_check import EngineCheck, EngineCheckResult
from tests.signals.zoo import POSITIONS, VOCABULARY, leaking, make, samples

POISON = 50
QUANTITIES = ("loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding")
LENGTH = 8


def sample(*ids: int) -> dict[str, list[int]]:
    return {"input_ids": list(ids), "labels": list(ids)}


BAD: dict[str, list[dict[str, list[int]]]] = {
    "empty": [sample()],
    "no label token": [
        {"input_ids": [5, 6, 7], "labels": [-100] * 3},
        {"input_ids": [5, 6, 7], "labels": [5, -100, -100]},
        sample(5),
    ],
    f"token outside the model's vocabulary of {VOCABULARY}": [
        sample(5, VOCABULARY, 6),
        sample(5, -1, 6),
        {"input_ids": [5, 6], "labels": [5, VOCABULARY]},
    ],
    f"longer than the model's {POSITIONS} positions": [sample(*[5] * (POSITIONS + 1))],
}
POISONED = sample(4, POISON, *range(5, 3 + LENGTH))

GOOD = [s for s in samples(20, longest=LENGTH, shortest=LENGTH, seed=1) if POISON not in s["input_ids"]][:8]


def model(dtype: torch.dtype = torch.float32) -> Any:
    made = make("Llama", dtype)
    with torch.no_grad():
        made.model.embed_tokens.weight[POISON] = torch.nan
    return made


def measured(pool: Any, **options: Any) -> Signals:
    return collect(model(), pool, **{"want": QUANTITIES, "grad_dim": 64, "progress": False} | options)


def test_each_kind_is_named_and_the_rest_as_without_them():
    """Two good samples fill a batch of 16 tokens and the poisoned one comes last: the good ones meet in the
    same batches with and without the bad ones, so they must be equal bit for bit."""
    pool, rows, expected = list(GOOD), list(range(len(GOOD))), {}
    for kind, bad in BAD.items():
        for one in bad:
            place = 3 + sum(map(len, expected.values()))
            pool.insert(place, one)
            rows = [row + (row >= place) for row in rows]
            expected = {k: [i + (i >= place) for i in found] for k, found in expected.items()}
            expected.setdefault(kind, []).append(place)
    pool.append(POISONED)
    expected |= {f"{name} not finite": [len(pool) - 1] for name in QUANTITIES}
    with pytest.warns(UserWarning, match=rf"9 of {len(pool)} samples set aside: 1 empty \(first: 3\)"):
        found = measured(pool, batch_tokens=2 * LENGTH)
    assert {kind: sorted(indices.tolist()) for kind, indices in found.problems.items()} == {
        kind: sorted(indices) for kind, indices in expected.items()
    }
    assert found.ok is not None
    assert np.flatnonzero(found.ok).tolist() == rows
    clean = measured(GOOD, batch_tokens=2 * LENGTH)
    for name in QUANTITIES:
        assert np.array_equal(getattr(found, name)[rows], getattr(clean, name)), name
        assert not np.isfinite(getattr(found, name)[~found.ok]).any(), name


@pytest.mark.parametrize("leaks", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_in_one_batch_with_a_poisoned_one(dtype: torch.dtype, leaks: bool):
    """Everything together, poison first, in the middle and last. All are then measured one at a time, and
    are to the last bit what they are where that is asked for."""
    options: Any = {"want": QUANTITIES, "grad_dim": 64, "progress": False, "parameters": "all"}
    pool = [POISONED, *GOOD[:4], POISONED, *GOOD[4:], POISONED]
    spreading = leaking(model(dtype)) if leaks else model(dtype)
    with pytest.warns(UserWarning, match="3 of 11 samples set aside"):
        found = collect(spreading, pool, **options)
    clean = collect(model(dtype), GOOD, **options, batch_tokens=1)
    assert found.ok is not None
    assert np.flatnonzero(~found.ok).tolist() == [0, 5, 10]
    for name in QUANTITIES:
        np.testing.assert_array_equal(getattr(found, name)[found.ok], getattr(clean, name), name)


def test_the_leak_reaches_a_neighbour():
    """Or the tests with it would show nothing: NaN spreads to the sample before, forward and backward."""
    spreading = leaking(model())
    x = torch.zeros(3, 2, 16, requires_grad=True)
    out = spreading.model.layers[0].mlp.up_proj(x + torch.tensor([0.0, torch.nan, 0.0])[:, None, None])
    assert out.isnan().any(dim=2).tolist() == [[False, True], [True, True], [False, False]]
    (gradient,) = torch.autograd.grad(out, x, torch.where(out.isnan(), torch.nan, 1.0))
    assert gradient.isnan().any(dim=2).tolist() == [[True, True], [True, True], [False, False]]


def test_batches_without_a_bad_sample_stay_together(monkeypatch: pytest.MonkeyPatch):
    """Only the samples of a batch with one are measured again, each by itself."""
    monkeypatch.setattr(EngineCheck, "run", lambda *_: EngineCheckResult())
    sizes: list[int] = []
    made = model()
    made.register_forward_pre_hook(lambda *given: sizes.append(len(given[2]["input_ids"])), with_kwargs=True)
    with pytest.warns(UserWarning, match="1 of 9 samples set aside"):
        collect(made, [*GOOD, POISONED], want="loss", batch_tokens=3 * LENGTH, progress=False)
    assert sizes == [3, 3, 3, 1, 1, 1]


def test_mixture_of_experts_keeps_them_apart():
    mixture = make("Mixtral")
    with torch.no_grad():
        mixture.model.embed_tokens.weight[POISON] = torch.nan
    options: Any = {"want": QUANTITIES, "grad_dim": 64, "progress": False}
    with pytest.warns(UserWarning, match="1 of 9 samples set aside"):
        found = collect(mixture, [*GOOD, POISONED], **options)
    clean = collect(mixture, GOOD, **options)
    for name in QUANTITIES:
        np.testing.assert_allclose(getattr(found, name)[:-1], getattr(clean, name), rtol=1e-4, atol=1e-5)


def test_the_shortest_samples_may_be_poisoned():
    """The engine check tries the shortest ones first; then it tries others."""
    short = [sample(4, POISON), sample(4, POISON, 6)]
    with pytest.warns(UserWarning, match="2 of 10 samples set aside"):
        found = measured([*short, *GOOD])
    assert found.ok is not None
    assert found.ok.tolist() == [False] * 2 + [True] * 8


def test_a_finite_loss_with_a_gradient_that_is_not():
    """The square root of zero: finite itself, its slope is not. Flags tell quantities apart."""
    steep = make("Llama")
    with torch.no_grad():
        steep.model.embed_tokens.weight[POISON, 0] = 0.0

    def before(_: Any, args: Any) -> Any:
        return args[0] + 0 * args[0][..., :1].abs().sqrt(), *args[1:]

    steep.model.layers[0].register_forward_pre_hook(before)
    with pytest.warns(UserWarning, match="1 of 9 samples set aside: 1 grad not finite"):
        found = collect(steep, [*GOOD, POISONED], want=("loss", "grad"), parameters="all", progress=False)
    assert found.loss is not None
    assert np.isfinite(found.loss).all()
    assert list(found.problems) == ["grad not finite"]


@pytest.mark.parametrize("pool", [[sample()], [sample(5)] * 3, [POISONED] * 2])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_bad_is_an_error(pool: Any):
    with pytest.raises(SignalError, match=f"None of the {len(pool)} samples could be measured"):
        measured(pool)


@pytest.mark.parametrize("form", [list, Dataset.from_list])
@pytest.mark.parametrize("change", [-1, 1])
def test_labels_of_another_length_are_an_error(form: Any, change: int):
    """Also where lengths agree in all: labels would be another sample's."""
    pool = [dict(s) for s in GOOD]
    pool[2] = {"input_ids": [4, 5, 6, 7], "labels": [4, 5, 6, 7][: 4 + change] + [8] * max(0, change)}
    pool[5] = {"input_ids": [4, 5, 6, 7], "labels": [4, 5, 6, 7][: 4 - change] + [8] * max(0, -change)}
    with pytest.raises(SignalError, match=f"Sample 2 has 4 input_ids and {4 + change} labels"):
        measured(form(pool))


def test_one_sample():
    """Nothing to check a pair with."""
    found, among = measured(GOOD[:1]), measured(GOOD)
    for name in QUANTITIES:
        np.testing.assert_allclose(getattr(found, name)[0], getattr(among, name)[0], rtol=1e-4, atol=1e-5)


def test_a_sample_of_two_tokens():
    found = measured([*GOOD, sample(5, 6)])
    alone = measured([sample(5, 6)])
    assert found.num_tokens is not None
    assert found.num_tokens[-1] == 1
    for name in QUANTITIES:
        np.testing.assert_allclose(getattr(found, name)[-1], getattr(alone, name)[0], rtol=1e-4, atol=1e-5)


def test_report_counts_samples_not_problems():
    many = {f"kind {i}": np.arange(9) for i in range(3)}
    assert (
        Signals(10, problems=many).report().startswith("9 of 10 samples set aside: 9 kind 0 (first: 0, 1, ")
    )
