"""What cannot be decided ends in one sentence, whoever asks and however."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from gradwise import baselines
from gradwise.methods.d3 import PublishedD3
from gradwise.signals import Signals

SELECT = [gw.Grace, baselines.RandomSubset, baselines.LossTop, baselines.LengthTop, baselines.KCenter]
ORDER = [baselines.Shuffle, baselines.GivenOrder, baselines.EasyFirst, baselines.Interleave, gw.D3]
ANNEALERS = [gw.Direct, baselines.RandomAnneal, baselines.LossAnneal, baselines.CosineTop, baselines.Herding]


def signals(n: int = 20, **changes: Any) -> Signals:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "embedding": rng.standard_normal((n, 4)).astype(np.float32),
        "loss": rng.random(n).astype(np.float32),
        "grad": rng.standard_normal((n, 8)).astype(np.float32),
        "grad_norm": rng.random(n).astype(np.float32),
        "head_norm": rng.random(n).astype(np.float32),
        "num_tokens": rng.integers(2, 9, n).astype(np.int32),
        "domain": np.array([f"d{i % 2}" for i in range(n)]),
    }
    return Signals(n, **{name: value for name, value in (values | changes).items() if value is not None})


def refused(make: Callable[[], Any], said: str | None = None) -> None:
    with pytest.raises(gw.GradwiseError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("method", SELECT)
def test_selections(method: Any) -> None:
    for found in (None, [1, 2], {"loss": [1.0]}, signals(0)):
        refused(
            lambda found=found: method(fraction=0.5).select(found), "as gradwise.collect returns|no sample"
        )
    if method is not baselines.RandomSubset:
        refused(lambda: method(fraction=0.5).select(Signals(5)), "needs the signal")
    refused(lambda: method(count=100).select(signals()), "only 20 samples")
    refused(lambda: method(fraction=1e-9).select(signals()), "none of 20 samples")
    refused(lambda: method(fraction=0.5, count=3))
    refused(method)


@pytest.mark.parametrize("method", ORDER)
def test_orders(method: Any) -> None:
    for found in (None, [1, 2], signals(0)):
        refused(lambda found=found: method().order(found), "as gradwise.collect returns|no sample")
    for entries in ([0, 99], [0, -1], [0.5, 1.0], [], [[0, 1], [2, 3]], ["a"], 3, [2**70]):
        refused(lambda entries=entries: method().order(signals(), entries))
    if method is PublishedD3:
        refused(lambda: method().order(signals(), np.array([3, 1, 2])), "give a gradwise.Probe")
        return
    assert sorted(method().order(signals(), [3, 1, 2]).indices.tolist()) == [1, 2, 3]


@pytest.mark.parametrize("method", ANNEALERS)
def test_annealing_selections(method: Any) -> None:
    for found in (None, [1, 2], signals(0)):
        refused(lambda found=found: method(count=3).select(found, validation=signals(5)))
    refused(lambda: method(count=100).select(signals(), validation=signals(5)))
    refused(lambda: method(fraction=1e-9).select(signals(), validation=signals(5)), "none of")
    refused(lambda: method().select(signals(), validation=signals(5)))
    if method in (gw.Direct, baselines.CosineTop, baselines.Herding):
        for held_out in (None, Signals(4)):
            refused(lambda held_out=held_out: method(count=3).select(signals(), validation=held_out))


def _selection(**parts: Any) -> Callable[[], Any]:
    given: dict[str, Any] = {"indices": np.array([1, 2]), "why": ("a",)}
    return lambda: gw.Selection(**given | parts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gw.Grace(tokens=1).select(signals()),
        lambda: gw.Signals(-1),
        lambda: signals().take([20]),  # type: ignore[arg-type]
        lambda: signals().take([-1]),  # type: ignore[arg-type]
        lambda: signals().require("importance", "GRACE"),
        lambda: gw.collect(None, [], grad_dim=10**12),  # type: ignore[arg-type]
        lambda: gw.Grace(fraction=0.5, domain_minimum=0.5).select(signals(domain=None)),
        lambda: gw.Direct(count=3).select(signals(), validation=[1]),  # type: ignore[arg-type]
        lambda: gw.Direct(count=3).select(signals(), validation=signals(5), curvature=np.eye(8)),  # type: ignore[arg-type]
        lambda: gw.Direct(count=3).select(signals(), validation=signals(5, grad=np.ones((5, 3)))),
        lambda: gw.Direct(tokens=1).select(signals(), validation=signals(5)),
        lambda: gw.D3(units="domains").order(signals(domain=None)),
        lambda: gw.D3(units="domains").order(signals(domain=np.full(20, "a"))),
        lambda: gw.D3(units="domains", edges="lookahead").order(signals()),
        lambda: gw.D3(units="domains").order(signals(), probe=3),  # type: ignore[arg-type]
        _selection(why=("a", "b", "c")),
        _selection(why="because"),
        _selection(why=()),
        _selection(weights=np.ones(3)),
        _selection(weights=np.array([-1.0, 2.0])),
        _selection(weights=np.array([np.nan, 2.0])),
        _selection(weights=np.zeros(2)),
        _selection(scores=np.ones(3)),
        _selection(columns={"x": np.ones(5)}),
        _selection(indices=np.array([-1, 2])),
        _selection(indices=np.array([0.5, 2])),
        _selection(indices=np.zeros((2, 2), int)),
        lambda: gw.Order(np.array([1, 2]), why=("a", "b", "c")),
        lambda: gw.Order(np.array([1, 2]), units=np.array([1])),
        lambda: gw.Order(np.array([-1, 2])),
        *(
            lambda epochs=epochs: gw.Plan.of(epochs)  # type: ignore[arg-type]
            for epochs in (
                [], [[]], [[-1]], [[0.5, 1]], "abc", [["a"]], [1, 2], None, [[float("nan")]], [[2**70]], 7,
            )
        ),
        lambda: gw.Plan.of([[5]], pool=3),
        lambda: gw.Plan.of([[1]], pool="x"),  # type: ignore[arg-type]
        lambda: gw.Plan(([1, 2],), 3),  # type: ignore[arg-type]
        lambda: gw.Segment(np.array([1, 2]), 0, ("a", "b")),
        lambda: gw.Plan.of([[1]]).followed_by([], after=9),
        lambda: gw.PlanSampler(None),  # type: ignore[arg-type]
        lambda: gw.PlanSampler(gw.Plan.of([[1]])).replace([1]),  # type: ignore[arg-type]
        *(
            lambda state=state: gw.PlanSampler(gw.Plan.of([[1]])).load_state_dict(state)  # type: ignore[arg-type]
            for state in ({}, None, {"position": "x", "digest": "y"}, {"position": 0, "digest": "y"})
        ),
    ],
)  # fmt: skip
def test_everything_else(make: Callable[[], Any]) -> None:
    refused(make)


WITHOUT_EFFECT = [
    (gw.Grace, {"fraction": 0.5, "refresh_every": 0}, {"anchors": 0.5, "drift": 0.2, "beta": 0.1}),
    (gw.Grace, {"fraction": 0.5, "anchors": 1.0}, {"staleness": 0.1, "drift": 0.2, "min_agreement": 0.1}),
    (gw.Grace, {"fraction": 0.5, "beta": 0.0}, {"propagate": "value"}),
    (gw.Grace, {"fraction": 0.5, "trade_off": 1.0}, {"importance": "norm", "by_length": False}),
    (gw.Grace, {"fraction": 0.5, "random_anchors": 1.0}, {"staleness": 0.1}),
    (gw.D3, {"window": None}, {"commit": 2}),
    (gw.D3, {"units": "batches"}, {"keep": 0.2}),
    (gw.D3, {"units": "samples"}, {"keep": 0.2}),
    (PublishedD3, {"rule": "trial"}, {"hessian_probes": 2, "hessian_samples": None}),
    (gw.Direct, {"count": 5}, {"starts": 32}),
    (gw.Direct, {"count": 5, "objective": "alignment"}, {"starts": 1}),
    (gw.Direct, {"count": 5, "copies": None}, {"alike": 0.99}),
    (baselines.FullAnneal, {}, {"validation_samples": 9}),
    (baselines.RandomAnneal, {"count": 5}, {"validation_samples": 9}),
    (baselines.LossAnneal, {"count": 5}, {"validation_samples": None}),
    (baselines.InfoBatch, {}, {"tokens": 100}),
]


@pytest.mark.parametrize(("method", "given", "useless"), WITHOUT_EFFECT)
def test_settings_without_effect_are_refused(
    method: Any, given: dict[str, Any], useless: dict[str, Any]
) -> None:
    method(**given)
    for name, value in useless.items():
        refused(
            lambda name=name, value=value: method(**given, **{name: value}), f"{name} has no effect|{name}"
        )


def test_contenders_are_not_given_what_they_do_not_use() -> None:
    trial = gw.Trial(contenders=("cosine_top", "random", "full"), validation_samples=9)
    assert [method.validation_samples for method in trial.contender_methods.values()] == [9, 256, 256]


def test_random_picks_are_said_and_have_no_scores() -> None:
    with pytest.warns(
        UserWarning, match="4 of 10 picks are random, since only 9 samples were scored.*select.candidates"
    ):
        picked = gw.Grace(count=10, candidates=9).select(signals(40))
    assert picked.scores is not None and np.isnan(picked.scores).sum() == 4
    for name, values in picked.columns.items():
        assert np.ma.getmaskarray(values).sum() == (0 if name == "rank" else 4), name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gw.Grace(count=10).select(signals(40))


def test_too_few_nodes_to_measure_are_said() -> None:
    with pytest.warns(UserWarning, match="found 0 domains with at least 50 samples"):
        assert gw.D3(units="domains", size=50).order(signals()).graph is None


@pytest.mark.parametrize(
    "method",
    [
        gw.Direct,
        lambda count: gw.Direct(count=count, objective="paper"),
        baselines.CosineTop,
        baselines.Herding,
    ],
)
def test_validation_gradients_that_say_nothing(method: Any) -> None:
    held_out, pool = signals(40), signals(30)
    grad = np.array(held_out.grad)
    for few in (0, 1, 2):
        grad[few:] = 0
        held_out = signals(40, grad=grad.copy())
        refused(
            lambda held_out=held_out: method(count=3).select(pool, validation=held_out), "validation samples"
        )
        grad[:2] = np.array(signals(40).grad)[:2]
    grad[:3] = np.array(signals(40).grad)[:3]
    assert len(method(count=3).select(pool, validation=signals(40, grad=grad)).indices) == 3
    apart = np.concatenate([np.zeros((30, 8)), np.array(pool.grad)], axis=1).astype(np.float32)
    theirs = np.concatenate([np.array(signals(40).grad), np.zeros((40, 8))], axis=1).astype(np.float32)
    refused(
        lambda: method(count=3).select(signals(30, grad=apart), validation=signals(40, grad=theirs)),
        "orthogonal to the target",
    )


@pytest.mark.parametrize("numbers", [{"seed": -1}, {"seed": "a"}, {"seed": None}, {"seed": 0.5}])
def test_numbers_of_random_streams(numbers: dict[str, Any]) -> None:
    for method in SELECT:
        refused(lambda method=method: method(fraction=0.5).select(signals(), **numbers), "needs seed")
    for method in ORDER:
        refused(lambda method=method: method().order(signals(), **numbers), "needs seed")
        refused(lambda method=method: method().order(signals(), epoch=-1), "needs epoch")
    for method in ANNEALERS:
        refused(
            lambda method=method: method(count=3).select(signals(), validation=signals(5), **numbers), "seed"
        )


def test_trainers_and_probes_name_what_they_were_given(tiny_llama: Any, arguments: Any) -> None:
    model, rows = tiny_llama(), [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}] * 4
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"recipe": "recipe.yaml"}, "as gradwise.Recipe.load reads one"),
        ({"recipe": {"select": "full"}}, "as gradwise.Recipe.load reads one"),
        ({"plan": [1, 2]}, "as gradwise.Plan.of makes one"),
        ({"packed_length": "64"}, "packed_length must be a whole number"),
        ({"packed_length": 0}, "packed_length must be a whole number"),
        ({"unpack_if_needed": True}, "no effect without packed_length"),
    )
    for given, said in cases:
        refused(lambda given=given: gw.Trainer(model, arguments(), train_dataset=rows, **given), said)
    refused(lambda: gw.Trainer(model, arguments(), train_dataset=[]).train(), "data set is empty")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for given in ((None, optimizer, rows), (model, None, rows), (model, optimizer, None)):
        refused(lambda given=given: gw.Probe(*given))  # type: ignore[arg-type]
