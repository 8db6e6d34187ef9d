"""`want` is honoured: what is not asked for is neither computed nor returned; what cannot be is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from gradwise import SignalError
from gradwise.signals import Signals, collect
from gradwise.signals.engine_check import EngineCheck, EngineCheckResult
from tests.signals.zoo import make, samples

POOL = samples()
QUANTITIES = ("loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding")


@pytest.fixture(scope="module")
def everything() -> Signals:
    return collect(make("Llama"), POOL, want=QUANTITIES, grad_dim=32, progress=False)


@pytest.mark.parametrize("want", [*QUANTITIES, ("loss", "grad"), ("head_norm", "embedding")])
def test_only_what_was_asked_for_and_the_same(want: Any, everything: Signals):
    signals = collect(make("Llama"), POOL, want=want, grad_dim=32, progress=False)
    asked = {want} if isinstance(want, str) else set(want)
    for name in QUANTITIES:
        found = getattr(signals, name)
        assert (found is not None) == (name in asked)
        if found is not None:
            np.testing.assert_allclose(found, getattr(everything, name), rtol=1e-5, atol=1e-6)
    assert signals.num_tokens is not None
    assert signals.num_tokens.tolist() == [sum(x != -100 for x in s["labels"][1:]) for s in POOL]


def test_types_and_shapes(everything: Signals):
    shapes = {"loss": (), "embedding": (16,), "grad_norm": (), "grad": (32,), "head_norm": ()}
    shapes["middle_embedding"] = (16,)
    for name, tail in shapes.items():
        found = getattr(everything, name)
        assert (found.shape, found.dtype) == ((len(POOL), *tail), np.float32), name
    assert everything.num_tokens is not None
    assert everything.num_tokens.dtype == np.int32
    assert everything.ok is not None
    assert everything.ok.all()
    assert (len(everything), everything.problems, everything.report()) == (len(POOL), {}, "")
    assert everything.seconds > 0


class Watched:
    """Counts forward passes and, by module, gradients that come back."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.forwards, self.graphs, self.backwards = 0, 0, 0
        self.recording: set[bool] = set()
        model.register_forward_hook(self._after)
        for layer in model.model.layers:
            layer.mlp.down_proj.register_forward_hook(self._inside)

    def _after(self, *_: Any) -> None:
        self.forwards += 1
        self.recording.add(torch.is_grad_enabled())

    def _inside(self, module: Any, args: Any, out: torch.Tensor) -> None:
        if out.requires_grad:
            self.graphs += 1
            out.register_hook(self._back)

    def _back(self, _: torch.Tensor) -> None:
        self.backwards += 1


class TestCost:
    BATCHES = 3

    def passes(self, *want: Any) -> Watched:
        """A pool of three batches."""
        watched = Watched(make("Llama"))
        pool = samples(6, longest=10, shortest=10)
        collect(watched.model, pool, want=want, grad_dim=8, batch_tokens=20, progress=False)
        return watched

    ALONE = 5
    """Samples that the engine check measures by themselves: two of the first batch, two of the last, and one
    that shows what becomes of the head's output."""

    @pytest.mark.parametrize("want", [("loss",), ("loss", "embedding"), ("embedding",)])
    def test_loss_and_embedding_are_one_forward_pass_without_a_graph(self, want: Any):
        watched = self.passes(*want)
        assert (watched.forwards, watched.graphs, watched.backwards) == (self.BATCHES + self.ALONE, 0, 0)
        assert watched.recording == {False}

    def test_no_graph_at_all(self, monkeypatch: pytest.MonkeyPatch):
        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("a backward pass")

        monkeypatch.setattr(torch.autograd, "grad", refuse)
        self.passes("loss", "embedding")
        self.passes("loss", "head_norm")
        with pytest.raises(AssertionError, match="a backward pass"):
            self.passes("grad_norm")

    def test_head_norm_leaves_the_blocks_alone(self):
        watched = self.passes("loss", "head_norm")
        assert (watched.forwards, watched.graphs, watched.backwards) == (self.BATCHES + self.ALONE, 0, 0)

    def test_gradients_are_one_forward_and_one_backward(self):
        """And those of the engine check: a pair and the longest with the engine, three samples without. One
        forward pass of a few tokens shows which weights are linear, and one what becomes of the head's
        output."""
        watched = self.passes("loss", "grad", "grad_norm")
        assert watched.forwards <= self.BATCHES + self.ALONE + 6
        assert watched.backwards == 2 * (watched.forwards - 2)

    def test_nothing_below_the_scope_is_back_propagated(self):
        watched = Watched(make("Llama"))
        collect(watched.model, POOL, want="grad", parameters="*layers.1.*.weight", grad_dim=8, progress=False)
        assert 0 < watched.backwards <= watched.forwards

    def test_weights_get_no_gradients(self, monkeypatch: pytest.MonkeyPatch):
        """The third of a training step that is saved: no batch's forward pass sees weights that learn."""
        model = make("Llama")
        learning = []
        model.register_forward_hook(
            lambda *_: learning.append(sum(p.requires_grad for p in model.parameters()))
        )
        monkeypatch.setattr(EngineCheck, "run", lambda *_: EngineCheckResult())
        collect(model, POOL, want=("grad", "grad_norm"), grad_dim=8, progress=False)
        assert learning and not any(learning)


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"want": "los"}, "want: unknown quantity 'los'.*loss"),
            ({"want": ()}, "want names nothing to measure"),
            ({"grad_dim": 0}, "grad_dim must be from 1 to 16,777,216, or None.*found 0"),
            ({"pooling": "mean"}, "pooling: unknown 'mean'"),
            ({"grad_dtype": "bfloat16"}, "grad_dtype must be float32 or float16; found 'bfloat16'"),
            ({"batch_tokens": 0}, "batch_tokens must be at least 1, a whole number; found 0"),
            ({"want": "loss", "precondition": {}}, "precondition changes gradients, but neither"),
            ({"want": "embedding", "layer": 7}, "layer is 7, but the model has 2 blocks"),
        ],
    )
    def test_settings(self, options: Any, sentence: str):
        with pytest.raises(SignalError, match=sentence):
            collect(make("Llama"), POOL, progress=False, **options)


METHODS = [
    gw.Grace(fraction=0.3),
    gw.Grace(count=2, importance="norm"),
    gw.baselines.LossTop(count=2),
    gw.baselines.KCenter(count=2),
]


class TestMethods:
    """What a method needs, asked for by the method."""

    @pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
    def test_selections_have_what_they_need(self, method: Any):
        found = collect(make("Llama"), POOL, want=method, grad_dim=8, progress=False)
        assert 1 <= len(method.select(found).indices) <= 3
        for name in QUANTITIES:
            assert (getattr(found, name) is not None) == (name in method.needs), name

    def test_several_and_names_together(self):
        methods = (gw.Grace(fraction=0.3), gw.Direct(count=2), gw.D3(units="domains"), "loss")
        found = collect(make("Llama"), POOL, want=methods, grad_dim=8, progress=False)
        found = replace(found, domain=np.array(["a", "b"] * 4)[: len(found)])
        methods[0].select(found)
        methods[1].select(found, validation=found)
        gw.D3(units="domains", size=1).order(found)

    @pytest.mark.parametrize("want", [gw.Grace, gw.baselines.RandomSubset(count=1), None, 3, [gw.Grace]])
    def test_others_are_refused(self, want: Any):
        with pytest.raises(SignalError, match=r"^want: "):
            collect(make("Llama"), POOL, want=want, progress=False)

    def test_what_is_missing_says_how_to_ask(self):
        found = collect(make("Llama"), POOL, want="loss", progress=False)
        with pytest.raises(SignalError, match="'embedding' among `want` or with the method itself"):
            gw.Grace(fraction=0.3).select(found)
        with pytest.raises(SignalError, match=r"needs the signal 'domain'.*dataclasses\.replace\("):
            found.require("domain", "somebody")
