"""LayerSwitch in a plain training loop: what is frozen stays, what is drawn trains, what is measured is
true."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradwise as gw
from gradwise import CheckpointError, Grass, LayerSwitch, RecipeError
from gradwise.estimating.trace import checkpoint_activations
from gradwise.methods.baselines import AllLayers, RoundRobinLayers, StaticLayers, TopLayers, UniformLayers
from gradwise.structure import group_layers
from gradwise.training.layers import average_gradients
from tests.conftest import same_weights

POLICIES = [UniformLayers, StaticLayers, RoundRobinLayers, TopLayers, Grass]
BATCHES = [torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(seed)) for seed in range(6)]


def make_optimizer(
    model: nn.Module, kind: type = torch.optim.AdamW, **settings: Any
) -> torch.optim.Optimizer:
    return kind(model.parameters(), **({"lr": 1e-2, "weight_decay": 0.1} | settings))


def one_step(model: Any, switch: LayerSwitch, optimizer: Any, batches: list[torch.Tensor]) -> None:
    switch.before_step()
    for ids in batches:
        (model(input_ids=ids, labels=ids).loss / len(batches)).backward()
    switch.after_backward()
    optimizer.step()
    optimizer.zero_grad()


def run(model: Any, switch: LayerSwitch, optimizer: Any, steps: int, passes: int = 1) -> None:
    for step in range(steps):
        one_step(model, switch, optimizer, [BATCHES[(step + turn) % len(BATCHES)] for turn in range(passes)])


def snapshot(parameters: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in parameters]


def unchanged(parameters: Any, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, was) for p, was in zip(parameters, before, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_frozen_weights_and_state_do_not_move(tiny_llama, policy: type, optimizer_class: type) -> None:
    model = tiny_llama()
    optimizer = make_optimizer(model, optimizer_class)
    switch = LayerSwitch(model, policy(active=1, period=2), optimizer, seed=3)
    groups = group_layers(model)
    for _ in range(14):
        weights = [snapshot(layer) for layer in groups.blocks]
        states = copy.deepcopy([[optimizer.state.get(p) for p in layer] for layer in groups.blocks])
        outside = snapshot(groups.outside)
        probing = switch.probing
        run(model, switch, optimizer, 1)
        for number, layer in enumerate(groups.blocks):
            if probing or number not in switch.active:
                assert unchanged(layer, weights[number])
                assert _same_state([optimizer.state.get(p) for p in layer], states[number])
            else:
                assert not unchanged(layer, weights[number])
        assert unchanged(groups.outside, outside)


def _same_state(now: list[Any], before: list[Any]) -> bool:
    pairs = zip(now, before, strict=True)
    return all(
        (a or {}).keys() == (b or {}).keys() and all(_same_value(a[name], b[name]) for name in a or {})
        for a, b in pairs
    )


def _same_value(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("policy", POLICIES)
def test_all_layers_active_is_ordinary_training(tiny_llama, policy: type) -> None:
    plain = tiny_llama()
    optimizer = make_optimizer(plain)
    for step in range(6):
        ids = BATCHES[step % len(BATCHES)]
        plain(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    switched = tiny_llama()
    optimizer = make_optimizer(switched)
    switch = LayerSwitch(switched, policy(active=4, embeddings="always", period=2), optimizer)
    while switch.probing:
        one_step(switched, switch, optimizer, [BATCHES[5]])
    run(switched, switch, optimizer, 6)
    assert same_weights(plain, switched)


@pytest.mark.parametrize("policy", [UniformLayers, StaticLayers, RoundRobinLayers, Grass])
def test_a_layer_drawn_late_has_changed_at_the_end(tiny_llama, policy: type) -> None:
    model = tiny_llama()
    optimizer = make_optimizer(model)
    switch = LayerSwitch(model, policy(active=1, period=1), optimizer)
    before = [snapshot(layer) for layer in switch.layers]
    seen: set[int] = set()
    for _ in range(200):
        run(model, switch, optimizer, 1)
        fresh = set(switch.active) - seen
        seen |= fresh
        if len(seen) == 4 and fresh:
            break
    assert len(seen) == 4, "every layer was drawn"
    assert not unchanged(switch.layers[fresh.pop()], before[switch.active[0]])


def test_each_parameter_counts_its_own_steps(tiny_llama) -> None:
    model = tiny_llama()
    optimizer = make_optimizer(model)
    switch = LayerSwitch(model, RoundRobinLayers(active=1, period=3), optimizer)
    run(model, switch, optimizer, 3 * 4 + 3)
    steps = [int(optimizer.state[layer[0]]["step"]) for layer in switch.layers]
    assert steps == [6, 3, 3, 3]


@pytest.mark.parametrize("passes", [1, 3])
def test_scores_are_the_accumulated_unclipped_gradient(tiny_llama, passes: int) -> None:
    """Against the definition: mean over the window of the root mean square of the layer's gradient."""
    model = tiny_llama()
    optimizer = make_optimizer(model)
    switch = LayerSwitch(model, Grass(active=4, period=2, smoothing=1.0, probe=1), optimizer)
    one_step(model, switch, optimizer, BATCHES[:passes])
    expected = np.zeros(4)
    for step in range(2):
        switch.before_step()
        batches = [BATCHES[(step + turn) % 6] for turn in range(passes)]
        for ids in batches:
            (model(input_ids=ids, labels=ids).loss / passes).backward()
        for number, layer in enumerate(switch.layers):
            flat = torch.cat([p.grad.double().flatten() for p in layer if p.grad is not None])
            expected[number] += flat.square().mean().sqrt().item() / 2
        switch.after_backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    switch.before_step()
    np.testing.assert_allclose(switch.scores, expected, rtol=1e-5)


@pytest.mark.parametrize(("passes", "tolerance"), [(1, 0.05), (4, 0.05)])
def test_the_probe_measures_what_training_would(tiny_llama, passes: int, tolerance: float) -> None:
    """Through a sketch, whose norm is within 1.1 % (one sigma)."""
    model = tiny_llama(hidden_size=64, intermediate_size=128)
    optimizer = make_optimizer(model)
    switch = LayerSwitch(model, Grass(active=1, probe=1), optimizer)
    for ids in BATCHES[:passes]:
        (model(input_ids=ids, labels=ids).loss / passes).backward()
    squares = [sum(float(p.grad.double().square().sum()) for p in layer) for layer in switch.layers]  # type: ignore[union-attr]
    expected = np.sqrt(np.array(squares) / [sum(p.numel() for p in layer) for layer in switch.layers])
    optimizer.zero_grad()
    one_step(model, switch, optimizer, BATCHES[:passes])
    switch.before_step()
    np.testing.assert_allclose(switch.scores, expected, rtol=tolerance)


def test_probing_holds_no_gradient_and_updates_nothing(tiny_llama) -> None:
    model = tiny_llama()
    optimizer = make_optimizer(model)
    switch = LayerSwitch(model, Grass(active=1, probe=2), optimizer)
    before = snapshot(model.parameters())
    for _ in range(2):
        assert switch.probing
        switch.before_step()
        for ids in BATCHES[:2]:
            model(input_ids=ids, labels=ids).loss.backward()
            assert all(p.grad is None for p in model.parameters())
        switch.after_backward()
        optimizer.step()
    assert not switch.probing
    assert unchanged(model.parameters(), before) and not optimizer.state


def test_loss_scaling_is_taken_out_of_the_scores(tiny_llama) -> None:
    scores = []
    for scale in (1.0, 1024.0):
        model = tiny_llama()
        optimizer = make_optimizer(model)
        switch = LayerSwitch(model, Grass(active=2, probe=1), optimizer)
        switch.before_step()
        (model(input_ids=BATCHES[0], labels=BATCHES[0]).loss * scale).backward()
        switch.after_backward(loss_scale=scale)
        switch.before_step()
        scores.append(switch.scores)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("embeddings", ["never", "always", "sampled"])
def test_embeddings_follow_their_setting(tiny_llama, policy: type, embeddings: str) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    optimizer = make_optimizer(model)
    switch = LayerSwitch(model, policy(active=2, period=1, embeddings=embeddings), optimizer, seed=1)
    outside = group_layers(model).outside
    assert len(switch.layers) == (5 if embeddings == "sampled" else 4)
    for _ in range(12):
        before, probing = snapshot(outside), switch.probing
        run(model, switch, optimizer, 1)
        moves = not probing and (embeddings == "always" or (embeddings == "sampled" and 4 in switch.active))
        assert unchanged(outside, before) is not moves


@pytest.mark.parametrize("state", ["keep", "drop"])
def test_state_of_layers_that_go_frozen(tiny_llama, state: Any) -> None:
    model = tiny_llama()
    optimizer = make_optimizer(model)
    switch = LayerSwitch(model, RoundRobinLayers(active=1, period=1, state=state), optimizer)
    held = []
    for _ in range(4):
        run(model, switch, optimizer, 1)
        held.append(sum(1 for layer in switch.layers if layer[0] in optimizer.state))
    assert held == ([1, 2, 3, 4] if state == "keep" else [1, 1, 1, 1])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("state", "stop"),
    [  # within a period, and at the end of one
        ("keep", 4),
        ("drop", 3),
        *(
            pytest.param(state, stop, marks=pytest.mark.exhaustive)
            for state, stop in [("keep", 1), ("keep", 3), ("keep", 7), ("drop", 1), ("drop", 4), ("drop", 7)]
        ),
    ],
)
def test_stopped_and_continued_is_the_same_run(tiny_llama, policy: type, state: str, stop: int) -> None:
    settings = policy(active=2, period=3, state=state)

    def fresh() -> tuple[Any, torch.optim.Optimizer, LayerSwitch]:
        model = tiny_llama()
        optimizer = make_optimizer(model)
        return model, optimizer, LayerSwitch(model, settings, optimizer, seed=5)

    model, optimizer, switch = fresh()
    history = []
    for step in range(12):
        if step == stop:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), switch.state_dict()))
        one_step(model, switch, optimizer, [BATCHES[step % 6]])
        history.append((switch.active, switch.scores.tolist()))
    other, other_optimizer, other_switch = fresh()
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    other_switch.load_state_dict(saved[2])
    for step in range(stop, 12):
        one_step(other, other_switch, other_optimizer, [BATCHES[step % 6]])
        assert (other_switch.active, other_switch.scores.tolist()) == history[step]
    assert same_weights(model, other)


def test_a_state_of_another_policy_is_refused(tiny_llama) -> None:
    model = tiny_llama()
    optimizer = make_optimizer(model)
    state = LayerSwitch(model, Grass(active=2), optimizer).state_dict()
    with pytest.raises(CheckpointError, match="layer policy"):
        LayerSwitch(model, Grass(active=1), optimizer).load_state_dict(state)


def test_everything_is_given_back(tiny_llama) -> None:
    model = tiny_llama()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    required = [p.requires_grad for p in model.parameters()]
    optimizer = make_optimizer(model)
    switch = LayerSwitch(model, Grass(active=1, probe=1, period=1), optimizer)
    for steps in (1, 4):
        run(model, switch, optimizer, steps)
        switch.restore()
        assert [p.requires_grad for p in model.parameters()] == required
        assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


class Planted(nn.Module):
    """Eight blocks; only two at a time have anything to learn, because the target moves along their
    directions."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(8))
        for block in self.blocks:
            nn.init.zeros_(block.get_parameter("weight"))

    def forward(self, target: dict[int, torch.Tensor]) -> torch.Tensor:
        weights: list[torch.Tensor] = [block.get_parameter("weight") for block in self.blocks]
        noise = 0.05 * torch.stack(weights).mean()
        return noise + torch.stack([(weights[n] - goal).square().mean() for n, goal in target.items()]).sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("active", [1, 2])
def test_draws_go_to_the_layers_that_carry_the_task_and_follow_it(active: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = Planted()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    switch = LayerSwitch(model, Grass(active=active, period=2, probe=2), optimizer, seed=7 + seed)

    def share(carriers: set[int], steps: int) -> float:
        target = {number: torch.randn(4, 4) * 3 for number in carriers}
        drawn: list[int] = []
        for step in range(steps):
            switch.before_step()
            model(target).backward()
            switch.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            if step >= steps // 2:
                drawn.extend(switch.active)
        return sum(layer in carriers for layer in drawn) / len(drawn)

    assert share({2, 5}, 400) > 0.6
    assert share({0, 7}, 800) > 0.6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: LayerSwitch(model, Grass(active=9), make_optimizer(model)), "has 4 layers"),
        (lambda model: LayerSwitch(model, Grass(floor=0.5), make_optimizer(model)), "floor"),
        (
            lambda model: LayerSwitch(
                model, Grass(), torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, fused=True)
            ),
            "fused and momentum cannot update layers that join later",
        ),
        (
            lambda model: LayerSwitch(model, Grass(), torch.optim.SGD(model.lm_head.parameters(), lr=1)),
            "not in the optimizer",
        ),
    ],
)
def test_mistakes_are_named(tiny_llama, make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(tiny_llama())


def saved_bytes(model: Any) -> int:
    """Bytes that one forward pass keeps for the backward pass, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=BATCHES[0], labels=BATCHES[0])
    assert output.loss.requires_grad
    return sum(kept.values())


def with_active(model: Any, layer: int) -> Any:
    for number, block in enumerate(model.model.layers):
        block.requires_grad_(number == layer)
    model.model.embed_tokens.requires_grad_(False)
    return model


def test_blocks_below_the_lowest_active_one_save_no_activations(tiny_llama) -> None:
    model = tiny_llama(layers=6)
    saved = [saved_bytes(with_active(model, layer)) for layer in range(6)]
    per_block = (saved[0] - saved[5]) / 5
    assert per_block > 0
    np.testing.assert_allclose(np.diff(saved), -per_block, rtol=0.05)


@pytest.mark.parametrize("lowest", range(6))
def test_checkpointed_blocks_below_the_lowest_active_one_keep_no_input(tiny_llama, lowest: int) -> None:
    """transformers alone lets the backward pass go down to the embeddings here, through every frozen
    block."""
    model = tiny_llama(layers=6)
    model.train()
    checkpoint_activations(model)
    switch = LayerSwitch(model, RoundRobinLayers(active=1), make_optimizer(model))
    with_active(model, lowest)
    inputs = []
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0])))
    output = model(input_ids=BATCHES[0], labels=BATCHES[0], use_cache=False)
    assert [reference() is not None for reference in inputs] == [block >= lowest for block in range(6)]
    output.loss.backward()
    switch.restore()
    assert model.model.embed_tokens(BATCHES[0]).requires_grad and model._require_grads_hooks


def test_checkpoints_whose_kind_is_left_to_torch_learn(tiny_llama) -> None:
    """Reentrant ones need inputs that require a gradient."""
    model = tiny_llama().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"preserve_rng_state": True})
    switch = LayerSwitch(model, RoundRobinLayers(active=1), make_optimizer(model))
    switch.before_step()
    model(input_ids=BATCHES[0], labels=BATCHES[0], use_cache=False).loss.backward()
    switch.after_backward()


def test_what_no_rank_used_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zero would let AdamW decay it, which one process does not do."""
    here, there, nowhere = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    here.grad = torch.full((2,), 4.0)

    def other_rank(flat: torch.Tensor) -> None:  # gives `there` a gradient of 2, and says so
        flat += torch.tensor([0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 1.0, 0.0])

    monkeypatch.setattr(torch.distributed, "all_reduce", other_rank)
    average_gradients([here, there, nowhere], 2)
    assert here.grad.tolist() == [2.0, 2.0] and there.grad is not None and there.grad.tolist() == [1.0, 1.0]
    assert nowhere.grad is None


@pytest.mark.exhaustive
def test_it_works_on_a_compiled_model(tiny_llama) -> None:
    results = []
    for compiled in (False, True):
        model = tiny_llama()
        optimizer = make_optimizer(model)
        switch = LayerSwitch(model, RoundRobinLayers(active=1, period=2), optimizer)
        run(torch.compile(model, backend="aot_eager") if compiled else model, switch, optimizer, 6)
        results.append(model)
    for one, other in zip(results[0].parameters(), results[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


class TestMisuse:
    """A loop that calls things in another order, or for another model, is refused."""

    def switch(self, tiny_llama: Any, policy: Any = None) -> tuple[Any, Any, LayerSwitch]:
        model = tiny_llama()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, LayerSwitch(model, policy or UniformLayers(active=2, period=1), optimizer)

    def learn(self, model: Any) -> None:
        ids = torch.arange(2, 10)[None]
        model(input_ids=ids, labels=ids).loss.backward()

    def test_after_backward_belongs_to_a_step(self, tiny_llama: Any) -> None:
        model, _, switch = self.switch(tiny_llama)
        self.learn(model)
        with pytest.raises(gw.RecipeError, match="without before_step"):
            switch.after_backward()
        switch.before_step()
        self.learn(model)
        switch.after_backward()
        with pytest.raises(gw.RecipeError, match="without before_step"):
            switch.after_backward()

    def test_a_step_begun_again_is_drawn_once(self, tiny_llama: Any) -> None:
        _, _, switch = self.switch(tiny_llama)
        assert switch.before_step() is not None
        assert switch.before_step() is None
        assert switch.draws == 1

    @pytest.mark.parametrize("policy", [UniformLayers(active=2), gw.Grass(active=2, probe=1)])
    def test_another_model_is_noticed(self, tiny_llama: Any, policy: Any) -> None:
        _, _, switch = self.switch(tiny_llama, policy)
        switch.before_step()
        self.learn(tiny_llama())
        with pytest.raises(gw.SignalError, match="No layer has a gradient"):
            switch.after_backward()

    def test_what_is_no_model_policy_or_optimizer_is_named(self, tiny_llama: Any) -> None:
        model, optimizer, _ = self.switch(tiny_llama)
        for given in (
            (None, UniformLayers(), optimizer), (model, AllLayers(), optimizer), (model, "grass", optimizer),
            (model, UniformLayers(), None), (model, UniformLayers(), model.parameters()),
        ):  # fmt: skip
            with pytest.raises(gw.RecipeError, match="LayerSwitch needs a"):
                LayerSwitch(*given)  # type: ignore[arg-type]

    def test_states_of_others_are_refused_and_of_earlier_versions_taken(self, tiny_llama: Any) -> None:
        _, _, switch = self.switch(tiny_llama)
        state = switch.state_dict()
        for wrong in ({}, None, state | {"layers": ["a"] * 4}, state | {"policy": {"active": 3}}):
            with pytest.raises(gw.CheckpointError):
                switch.load_state_dict(wrong)  # type: ignore[arg-type]
        kept = {name: value for name, value in state["policy"].items() if name != "state"}
        switch.load_state_dict(state | {"policy": kept})
