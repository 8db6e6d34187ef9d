"""The model, its gradients and the random state are as they were, also when the pass raised; nothing is left
in memory."""

import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradwise.data import Collator
from gradwise.signals import collect
from gradwise.signals.measure import Measurer
from gradwise.signals.model_state import prepared
from gradwise.signals.request import SignalRequest
from gradwise.signals.scope import resolve
from gradwise.signals.scoring_run import ScoringRun
from tests.signals.zoo import make, samples

POOL = samples()
QUANTITIES: Any = ("loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding")
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


@pytest.fixture(params=["Llama", "Mixtral", "LoRA on Llama"])
def model(request: pytest.FixtureRequest) -> Any:
    """Training with dropout, but for one block; one weight frozen; one with a gradient; a user's hook."""
    made = make(request.param).train()
    made.config.attention_dropout = 0.5
    blocks = [m for name, m in made.named_modules() if name.endswith("layers.1")]
    blocks[0].eval()
    blocks[0].register_forward_hook(lambda *_: None)
    last = [p for p in made.parameters() if p.requires_grad][-1]
    last.grad = torch.ones_like(last)
    next(p for p in made.parameters() if p.requires_grad).requires_grad_(False)
    return made


def state(model: Any) -> Any:
    modules = {
        name: (module.training, *(len(getattr(module, kind)) for kind in HOOKS), "forward" in vars(module))
        for name, module in model.named_modules()
    }
    parameters = {
        name: (p.detach().clone().numpy().tobytes(), p.requires_grad, p.grad is None or p.grad.sum().item())
        for name, p in model.named_parameters()
    }
    experts = getattr(model.config, "_experts_implementation", None)
    return modules, parameters, experts, torch.get_rng_state().tolist(), torch.is_grad_enabled()


def collected(model: Any, collator: Any = None, **options: Any) -> Any:
    return collect(model, POOL, collator, want=QUANTITIES, grad_dim=8, progress=False, **options)


def test_everything(model: Any):
    before = state(model)
    collected(model)
    assert state(model) == before


@pytest.mark.parametrize("batch", [0, 3, 4])
def test_also_when_it_raised(model: Any, batch: int):
    """In the engine check, and in the scoring run: from the collator, or deep inside the forward pass."""
    calls = []

    def broken(rows: Any) -> Any:
        calls.append(1)
        if len(calls) > batch:
            raise RuntimeError("a collator that fails")
        return Collator(0)(rows)

    before = state(model)
    with pytest.raises(RuntimeError, match="a collator that fails"):
        collected(model, broken, batch_tokens=20)
    assert state(model) == before


@pytest.mark.parametrize("passes", [1, 4, 7])
@pytest.mark.parametrize("backward", [False, True])
def test_also_when_the_model_raised(model: Any, passes: int, backward: bool):
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) >= passes:
            raise RuntimeError("a layer that fails")

    def hook(module: Any, args: Any, out: Any) -> None:
        if not backward:
            fail()
        elif out.requires_grad:
            out.register_hook(fail)

    target = next(m for name, m in model.named_modules() if name.endswith("layers.1.self_attn.o_proj"))
    target.register_forward_hook(hook)
    before = state(model)
    with pytest.raises(RuntimeError, match="a layer that fails"):
        collected(model, batch_tokens=20)
    assert state(model) == before


def test_also_when_interrupted(model: Any):
    def interrupted(rows: Any) -> Any:
        raise KeyboardInterrupt

    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        collected(model, interrupted)
    assert state(model) == before


def test_also_with_parameters_that_cannot_be_watched():
    model = make("Llama").train()
    model.model.norm.weight = nn.Parameter(model.model.norm.weight.data.view(1, 16))  # no vector any more
    before = state(model)
    with pytest.warns(UserWarning, match="one sample at a time"):
        collected(model, parameters="all")
    assert state(model) == before


def test_without_dropout():
    model = make("Llama")
    plain = collected(model)
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert np.array_equal(collected(model.train()).loss, plain.loss)


def test_samples_are_not_written_to():
    pool = samples()
    collect(make("Llama"), pool, want=QUANTITIES, grad_dim=8, progress=False)
    assert pool == samples()


def test_it_still_learns_afterwards(model: Any):
    collected(model)
    model.zero_grad()
    model(**Collator(0)(POOL[:2])).loss.backward()
    assert sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("name", ["Llama", "Mixtral", "GPT2"])
@pytest.mark.parametrize("parameters", ["blocks", "all"])
def test_no_tensor_outlives_its_batch(name: str, parameters: str):
    """Without the garbage collector: a cycle through a hook would keep activations for many batches."""
    model = make(name)
    wanted = SignalRequest.of(QUANTITIES, grad_dim=8)
    scope = resolve(model, parameters)
    with prepared(model) as bare:
        one = ScoringRun(bare, POOL, None, wanted, scope, None, 10**6)
        measure, batch = Measurer(bare, wanted, one.gradient_request), one.collate(POOL)
        measure(batch)
        gc.collect()
        gc.disable()
        try:
            before = _tensors()
            for _ in range(3):
                measure(batch)
            assert _tensors() == before
        finally:
            gc.enable()


def _tensors() -> int:
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())
