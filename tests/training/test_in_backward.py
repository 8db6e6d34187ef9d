"""An update within the backward pass is the ordinary step, and leaves no gradient behind."""

from typing import Any

import pytest
import torch
from torch import nn

from gradwise import Grass, LayerSwitch, RecipeError
from gradwise.methods.baselines import UniformLayers
from gradwise.structure import group_layers
from gradwise.training.in_backward import UpdateInBackward, check_update_in_backward
from gradwise.training.offload import offload_state
from tests.conftest import same_weights
from tests.training.offload.adversary import Adversary

BATCHES = [torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(seed)) for seed in range(6)]


def layers_of(model: Any) -> list[list[nn.Parameter]]:
    groups = group_layers(model)
    return [list(layer) for layer in (*groups.blocks, groups.outside)]


def train(model: Any, *, in_backward: bool, max_norm: float | None, offload: bool = False) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    layers = layers_of(model)
    if offload:
        offload_state(optimizer, layers, device=Adversary(1, 1 << 14))
    if in_backward:
        UpdateInBackward(optimizer, layers, max_norm=max_norm)
    for step in range(10):
        ids = BATCHES[step % 6]
        model(input_ids=ids, labels=ids).loss.backward()
        if in_backward:
            assert all(p.grad is None for p in model.parameters())
        elif max_norm is not None:
            for layer in layers:
                nn.utils.clip_grad_norm_(layer, max_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return model


@pytest.mark.parametrize("max_norm", [None, 0.05])
@pytest.mark.parametrize("offload", [False, True])
def test_it_is_the_ordinary_update(tiny_llama, max_norm: float | None, offload: bool) -> None:
    ordinary = train(tiny_llama(tie_word_embeddings=True), in_backward=False, max_norm=max_norm)
    model = tiny_llama(tie_word_embeddings=True)
    assert same_weights(ordinary, train(model, in_backward=True, max_norm=max_norm, offload=offload))


@pytest.mark.parametrize(
    "policy", [Grass(active=2, period=2, probe=1), UniformLayers(active=2, period=2, embeddings="always")]
)
@pytest.mark.parametrize("state", ["keep", "offload"])
def test_with_a_layer_policy(tiny_llama, policy: Any, state: str) -> None:
    """The same draws from the same scores, and the same weights."""
    results = []
    for in_backward in (False, True):
        model = tiny_llama()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        settings = type(policy)(**{**vars(policy), "state": state})
        switch = LayerSwitch(model, settings, optimizer, in_backward=in_backward)
        scores = []
        for step in range(9):
            switch.before_step()
            ids = BATCHES[step % 6]
            model(input_ids=ids, labels=ids).loss.backward()
            switch.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            scores.append((switch.active, switch.scores.tolist()))
        results.append((model, scores))
    assert same_weights(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_a_layer_used_in_part_is_updated_at_the_step() -> None:
    layer = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    UpdateInBackward(optimizer, [list(layer.parameters())])
    before = [p.detach().clone() for p in layer.parameters()]
    layer["used"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    moved = [not torch.equal(p, was) for p, was in zip(layer.parameters(), before, strict=True)]
    assert moved == [True, True, False, False]


class InPart(nn.Module):
    """Three blocks; some steps use only a half of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        kinds = [nn.ModuleDict({"used": nn.Linear(4, 4), "seldom": nn.Linear(4, 4)}) for _ in range(3)]
        self.layers = nn.ModuleList(kinds)

    def forward(self, rows: torch.Tensor, whole: bool) -> torch.Tensor:
        for block in self.layers:
            rows = block["used"](rows)  # type: ignore[index]
            rows = block["seldom"](rows) if whole else rows  # type: ignore[index]
        return rows.square().sum()


@pytest.mark.parametrize("state", ["keep", "offload"])
def test_layers_used_in_part_are_measured_and_clipped(state: Any) -> None:
    results = []
    for in_backward in (False, True):
        model, limit = InPart(), 0.05
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        policy = Grass(active=2, period=2, probe=1, state=state)
        limits: dict[str, Any] = {"in_backward": True, "max_layer_norm": limit} if in_backward else {}
        switch, scores = LayerSwitch(model, policy, optimizer, **limits), []
        for step in range(8):
            switch.before_step()
            model(torch.full((2, 4), float(step)), whole=step % 4 == 0).backward()
            switch.after_backward()
            for layer in () if in_backward else switch.layers:
                nn.utils.clip_grad_norm_([p for p in layer if p.grad is not None], limit)
            optimizer.step()
            optimizer.zero_grad()
            scores.append((switch.active, switch.scores.tolist()))
        results.append((model, scores))
    assert same_weights(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_a_step_can_begin_again_after_an_error(tiny_llama) -> None:
    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters())
    switch = LayerSwitch(model, UniformLayers(active=4), optimizer, in_backward=True)

    def fail(*_: object) -> None:
        raise KeyError

    switch.before_step()
    # By then two blocks are updated, and the second one has a part of its gradients.
    hook = model.model.layers[1].mlp.register_full_backward_hook(fail)
    with pytest.raises(KeyError):
        model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
    hook.remove()
    optimizer.zero_grad()
    with pytest.warns(UserWarning, match="has updated 2 of 5 layers"):
        switch.before_step()
    model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
    assert all(p.grad is None for p in model.parameters())
    switch.after_backward()
    optimizer.step()


def test_accumulation_is_refused(tiny_llama) -> None:
    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters())
    UpdateInBackward(optimizer, layers_of(model))
    model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
    with pytest.raises(RecipeError, match=r"call optimizer.step\(\) after every backward pass"):
        model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"scaled": True}, "loss scaling decides"),
        ({"ranks": 2}, "2 ranks average gradients"),
    ],
)
def test_what_it_would_change_is_refused(settings: Any, reason: str) -> None:
    check_update_in_backward()
    with pytest.raises(RecipeError, match=reason):
        check_update_in_backward(**settings)


def test_loss_scaling_and_clipping_without_it_are_refused(tiny_llama) -> None:
    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(RecipeError, match="max_layer_norm belongs to in_backward"):
        LayerSwitch(model, UniformLayers(), optimizer, max_layer_norm=1.0)
    switch = LayerSwitch(model, UniformLayers(), optimizer, in_backward=True)
    switch.before_step()
    model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
    with pytest.raises(RecipeError, match="loss scaling decides"):
        switch.after_backward(loss_scale=2.0)
