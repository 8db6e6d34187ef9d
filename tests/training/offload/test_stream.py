"""Offloaded state gives the numbers of kept state, bit for bit, whatever order the copies happen in."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradwise as gw
from gradwise import Grass, LayerSwitch, RecipeError
from gradwise.methods.baselines import RoundRobinLayers, UniformLayers
from gradwise.training.offload import offload_state
from gradwise.training.offload import stream as stream_module
from gradwise.training.offload.arena import ALIGNMENT, state_forms, units_of
from gradwise.training.offload.device import Device, Registered
from tests.conftest import same_weights, some
from tests.training.offload.adversary import Adversary

BATCHES = [torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
ADAMW: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
SGD: dict[str, Any] = {"lr": 1e-1, "momentum": 0.9, "weight_decay": 0.1}


@dataclass
class Run:
    """A training loop with a layer policy, accumulation, clipping and a schedule."""

    model: Any
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    switch: LayerSwitch
    done: int = 0

    @classmethod
    def of(
        cls,
        model: Any,
        state: Any,
        *,
        kind: type[torch.optim.Optimizer] = torch.optim.AdamW,
        settings: dict[str, Any] = ADAMW,
        policy: Any = None,
        device: Device | None = None,
        by_parameter: bool = False,
    ) -> "Run":
        groups = [
            [p for p in model.parameters() if p.dim() > 1],
            [p for p in model.parameters() if p.dim() < 2],
        ]
        optimizer: Any = kind([{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}], **settings)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.9)
        policy = policy or UniformLayers(active=2, period=3, embeddings="always")
        layers: Any = [list(block.parameters()) for block in model.model.layers]
        if state == "offload":
            offload_state(
                optimizer, [[p] for layer in layers for p in layer] if by_parameter else layers, device=device
            )
        switch = LayerSwitch(model, type(policy)(**{**vars(policy), "state": state}), optimizer, seed=3)
        return cls(model, optimizer, scheduler, switch)

    def steps(self, count: int, passes: int = 2) -> "Run":
        for _ in range(count):
            self.switch.before_step()
            for turn in range(passes):
                ids = BATCHES[(self.done + turn) % len(BATCHES)]
                (self.model(input_ids=ids, labels=ids).loss / passes).backward()
            probing = self.switch.probing
            self.switch.after_backward()
            if not probing:
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
                self.done += 1
        return self


def saved(run: Run) -> Any:
    """What a checkpoint holds, through a file as a checkpoint is."""
    file = io.BytesIO()
    states = [part.state_dict() for part in (run.model, run.optimizer, run.scheduler, run.switch)]
    torch.save(states, file)
    file.seek(0)
    return torch.load(file)


def resumed(run: Run, states: Any, done: int) -> Run:
    for part, state in zip((run.model, run.optimizer, run.scheduler, run.switch), states, strict=True):
        part.load_state_dict(state)
    run.done = done
    return run


def same_state(one: Run, other: Run) -> bool:
    left, right = (run.optimizer.state_dict()["state"] for run in (one, other))
    return left.keys() == right.keys() and all(
        left[number].keys() == right[number].keys()
        and all(_same(value, right[number][name]) for name, value in left[number].items())
        for number in left
    )


def _same(one: Any, other: Any) -> bool:
    return (
        one.dtype == other.dtype and torch.equal(one, other)
        if isinstance(one, torch.Tensor)
        else one == other
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings", "dtype"),
    [
        (torch.optim.AdamW, ADAMW, torch.bfloat16),
        (torch.optim.AdamW, ADAMW, torch.float32),
        pytest.param(torch.optim.SGD, SGD, torch.float32, marks=pytest.mark.exhaustive),
        pytest.param(torch.optim.SGD, SGD, torch.bfloat16, marks=pytest.mark.exhaustive),
    ],
)
def test_200_steps_are_those_of_kept_state(tiny_llama, dtype: torch.dtype, kind: type, settings: Any) -> None:
    """With redraws, accumulation, clipping, a schedule, and a resume in the middle of a period."""
    kept = Run.of(tiny_llama(3).to(dtype), "keep", kind=kind, settings=settings).steps(200)
    half = Run.of(tiny_llama(3).to(dtype), "offload", kind=kind, settings=settings).steps(100)
    fresh = Run.of(tiny_llama(3).to(dtype), "offload", kind=kind, settings=settings)
    whole = resumed(fresh, saved(half), 100).steps(100)
    assert same_weights(kept.model, whole.model) and same_state(kept, whole)


@pytest.mark.parametrize("room", [0, 4096, 1 << 20])
@pytest.mark.parametrize("prefers", some([[], ["in"], ["in", "out"], ["out"], ["compute"]]))
def test_no_order_of_the_copies_changes_a_number(
    tiny_llama, monkeypatch: pytest.MonkeyPatch, room: int, prefers: tuple[str, ...]
) -> None:
    monkeypatch.setattr("gradwise.training.offload.arena.UNIT_BYTES", 6000)
    policy = Grass(active=2, period=2, probe=1, embeddings="always")
    kept = Run.of(tiny_llama(), "keep", policy=policy).steps(13)
    for seed in range(2):
        device = Adversary(seed, room, prefers)
        run = Run.of(tiny_llama(), "offload", policy=policy, device=device).steps(6)
        states = saved(run)  # reads what the last update wrote
        run.steps(7)
        assert same_weights(kept.model, run.model) and same_state(kept, run)
        again = Run.of(tiny_llama(), "offload", policy=policy, device=Adversary(seed + 9, room, prefers))
        assert same_weights(kept.model, resumed(again, states, 5).steps(7).model)


def test_a_wait_that_is_missing_is_found(tiny_llama) -> None:
    """The adversary has teeth: without any one of the events the numbers are others."""

    class Careless(Adversary):
        lost = "nothing"

        def _issue(self, stream: str, run: Callable[[], object], after: Any) -> Any:
            return super()._issue(stream, run, [] if stream == self.lost else after)

    kept = Run.of(tiny_llama(), "keep").steps(6)
    for lost in ("nothing", "compute", "in", "out"):
        differ = []
        for seed in range(3):
            device = Careless(seed, 1 << 20)
            device.lost = lost
            run = Run.of(tiny_llama(), "offload", device=device, by_parameter=True).steps(6)
            differ.append(not same_weights(kept.model, run.model))
        assert any(differ) is (lost != "nothing"), lost


def test_state_comes_in_during_the_last_backward_pass_only_where_there_is_room(tiny_llama) -> None:
    for room in (0, 1 << 20):
        device = Adversary(0, room)
        run = Run.of(
            tiny_llama(), "offload", policy=RoundRobinLayers(active=4, period=1), device=device
        ).steps(2)
        device.copies.clear()
        ids, before = BATCHES[0], []
        for _ in range(2):
            run.model(input_ids=ids, labels=ids).loss.backward()
            before.append(len(device.copies))
        assert before == [0, 4 if room else 0]
        run.optimizer.step()
        assert device.copies.count("in") == device.copies.count("out") == 4


def test_without_room_two_units_are_on_the_device(tiny_llama) -> None:
    device = Adversary(0, 0)
    run = Run.of(tiny_llama(), "offload", policy=RoundRobinLayers(active=4, period=1), device=device).steps(3)
    assert run.switch.stream is not None
    assert device.most == 2 * max(place.unit.size for place in run.switch.stream._places)
    assert not device.allocated


def test_an_update_that_was_skipped_leaves_nothing_behind(tiny_llama) -> None:
    """As loss scaling does after an overflow."""
    kept, run = Run.of(tiny_llama(), "keep"), Run.of(tiny_llama(), "offload", device=Adversary(1, 1 << 20))
    for each in (kept, run):
        each.steps(3)
        each.switch.before_step()
        each.model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
        each.switch.after_backward()
        each.optimizer.zero_grad()
        each.steps(5)
    assert same_weights(kept.model, run.model) and same_state(kept, run)


def test_the_arena_has_no_holes_and_keeps_types(tiny_llama) -> None:
    model = tiny_llama().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    layers: Any = [list(block.parameters()) for block in model.model.layers]
    forms = state_forms(optimizer)
    units = units_of(layers, forms)
    assert len(units) == len(layers)
    for unit, layer in zip(units, layers, strict=True):
        exact = sum(2 * p.nbytes for p in layer)
        assert exact <= unit.size < exact + ALIGNMENT * len(unit.pieces)
        assert {piece.form[1] for piece in unit.pieces} == {torch.bfloat16}
    assert all(len(unit.parameters) == 1 for unit in units_of(layers, forms, limit=1))


def test_loaded_state_keeps_its_own_type(tiny_llama) -> None:
    """torch's load_state_dict would turn float32 moments of bfloat16 weights into bfloat16."""
    model = tiny_llama().to(torch.bfloat16)
    optimizer = gw.AdamW(model.parameters(), foreach=False, offload="cpu")
    states = {"step": torch.tensor(3.0)}
    parameters = list(model.parameters())
    loaded = optimizer.state_dict()
    loaded["state"] = {
        number: {**states, **{name: torch.full(p.shape, 0.1) for name in ("exp_avg", "exp_avg_sq")}}
        for number, p in enumerate(parameters)
    }
    for _ in range(2):
        optimizer.load_state_dict(copy.deepcopy(loaded))
        values = optimizer.state_dict()["state"].values()
        assert {value["exp_avg"].dtype for value in values} == {torch.float32}
        assert all((value["exp_avg"] == 0.1).all() for value in values)


def test_checkpoints_of_kept_and_offloaded_state_are_interchangeable(tiny_llama) -> None:
    whole = Run.of(tiny_llama(), "keep").steps(8)
    for first, second in (("keep", "offload"), ("offload", "keep")):
        states = saved(Run.of(tiny_llama(), first).steps(4))
        states[3]["policy"]["state"] = second  # the setting itself must not change within a run
        assert same_weights(whole.model, resumed(Run.of(tiny_llama(), second), states, 4).steps(4).model)


def test_adamw_alone_is_torchs(tiny_llama) -> None:
    def train(make: Callable[[Any], Any]) -> Any:
        model = tiny_llama()
        optimizer = make(model.parameters())
        for step in range(8):
            ids = BATCHES[step % 6]
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    plain = train(lambda p: torch.optim.AdamW(p, **ADAMW))
    assert same_weights(plain, train(lambda p: gw.AdamW(p, **ADAMW)))
    assert same_weights(plain, train(lambda p: gw.AdamW(p, **ADAMW, offload="cpu")))
    fused = train(lambda p: torch.optim.AdamW(p, fused=True, **ADAMW))
    assert same_weights(fused, train(lambda p: gw.AdamW(p, fused=True, **ADAMW, offload="cpu")))


def test_saved_state_is_as_large_as_what_it_holds(tiny_llama) -> None:
    """And not as large as the whole arena for every tensor."""
    sizes = []
    for state in ("keep", "offload"):
        file = io.BytesIO()
        torch.save(Run.of(tiny_llama(), state).steps(2).optimizer.state_dict(), file)
        sizes.append(len(file.getvalue()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_what_cannot_be_offloaded_is_refused(tiny_llama) -> None:
    model = tiny_llama()
    with pytest.raises(RecipeError, match=r"found torch.optim.lbfgs.LBFGS. Use state: keep"):
        offload_state(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(RecipeError, match="or None; found 'disk'"):
        gw.AdamW(model.parameters(), offload="disk")  # type: ignore[arg-type]
    optimizer = gw.AdamW(model.parameters(), offload="cpu")
    with pytest.raises(RecipeError, match="takes all its parameters when it is made"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(RecipeError, match="takes no closure"):
        optimizer.step(lambda: 0.0)


def test_parameters_frozen_at_the_start_or_before_the_step(tiny_llama) -> None:
    """The embeddings thaw in the middle, and most steps find all parameters frozen."""
    models = [tiny_llama(), tiny_llama()]
    for model, offload in zip(models, (None, "cpu"), strict=True):
        embeddings = model.model.embed_tokens.weight.requires_grad_(False)
        optimizer = gw.AdamW(model.parameters(), lr=1e-2, offload=offload)  # type: ignore[arg-type]
        for step in range(4):
            embeddings.requires_grad_(step > 1)
            model(input_ids=BATCHES[step], labels=BATCHES[step]).loss.backward()
            model.requires_grad_(step == 3)
            optimizer.step()
            optimizer.zero_grad()
            model.requires_grad_(True)
        stream = getattr(optimizer, "offloaded_state", None)
        assert stream is None or embeddings in stream._handles
    assert same_weights(*models)


@pytest.mark.parametrize("embeddings", ["never", "always", "sampled"])
def test_a_switch_gives_places_to_what_its_policy_trains(tiny_llama, embeddings: Any) -> None:
    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    policy = UniformLayers(active=2, period=1, embeddings=embeddings, state="offload")
    switch = LayerSwitch(model, policy, optimizer)
    switch.before_step()
    model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
    switch.after_backward()
    optimizer.step()
    assert switch.stream is not None
    blocks = {p for block in model.model.layers for p in block.parameters()}
    placed = {p for place in switch.stream._places for p in place.unit.parameters}
    assert placed == (blocks if embeddings == "never" else set(model.parameters()))


@pytest.mark.parametrize("loads", [False, True])
def test_host_memory_is_for_what_trains(tiny_llama, loads: bool) -> None:
    """Embeddings that the policy freezes have no place in it, until they have a gradient or state."""
    models = [tiny_llama(), tiny_llama()]
    for model, state in zip(models, ("keep", "offload"), strict=True):
        run = Run.of(model, state, policy=UniformLayers(active=2, period=2))
        run.steps(3)
        if (stream := run.switch.stream) is not None:
            trained = {p for block in model.model.layers for p in block.parameters()}
            assert {p for place in stream._places for p in place.unit.parameters} == trained
        embeddings = model.model.embed_tokens.weight
        if loads:
            states = run.optimizer.state_dict()
            number = [p for group in run.optimizer.param_groups for p in group["params"]].index(embeddings)
            like = torch.ones_like(embeddings)
            states["state"][number] = {"step": torch.tensor(3.0), "exp_avg": like, "exp_avg_sq": 2 * like}
            run.optimizer.load_state_dict(states)
        # By hand, as nobody should, after the state has got its places.
        embeddings.requires_grad_(True)
        for step in range(2):
            model(input_ids=BATCHES[step], labels=BATCHES[step]).loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
        if stream is not None:
            assert embeddings in stream._place_of
    assert same_weights(*models)


def test_parameters_added_later_are_refused() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9)
    offload_state(optimizer)
    first(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.add_param_group({"params": list(second.parameters())})
    second(first(torch.ones(1, 2))).sum().backward()
    with pytest.raises(RecipeError, match="added to the optimizer after its state was offloaded"):
        optimizer.step()


def test_a_parameter_in_two_layers_is_updated_once() -> None:
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer, offload in zip(layers, (False, True), strict=True):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        if offload:
            offload_state(optimizer, [list(layer.parameters()), [layer.bias]])
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert torch.equal(layers[0].bias, layers[1].bias)


@pytest.mark.parametrize("within", [False, True])
def test_an_error_in_a_step_leaves_an_optimizer_that_works(
    monkeypatch: pytest.MonkeyPatch, within: bool
) -> None:
    """In another hook of the optimizer, or within the update of a unit."""
    layer = nn.Linear(2, 2)
    optimizer = gw.AdamW(layer.parameters(), lr=0.1, offload="cpu")
    failing = False

    def fail(*_: object) -> None:
        if failing:
            raise KeyError

    def step() -> None:
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    step()
    optimizer.register_step_pre_hook(lambda *_: None if within else fail())
    ordinary = stream_module.step_on
    monkeypatch.setattr(stream_module, "step_on", lambda *given: (ordinary(*given), within and fail()))
    places = {name: value.data_ptr() for name, value in optimizer.state[layer.weight].items()}
    failing = True
    with pytest.raises(KeyError):
        step()
    failing = False
    optimizer.zero_grad()
    assert places == {name: value.data_ptr() for name, value in optimizer.state[layer.weight].items()}
    before = layer.weight.detach().clone()
    step()
    assert not torch.equal(before, layer.weight)
    assert len(optimizer.state_dict()["param_groups"][0]["params"]) == 2


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' list of mapped memory")
def test_pinned_memory_is_given_back_to_the_driver_while_it_is_mapped() -> None:
    def mapped(address: int) -> bool:
        lines = Path("/proc/self/maps").read_text().splitlines()
        spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
        return any(start <= address < end for start, end in spans)

    memory, seen = Registered(-1, 50_000_000), []
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    memory.unregister = lambda: seen.append(mapped(address))
    view = memoryview(memory)
    del memory
    assert not seen  # the arena holds a view
    del view
    assert seen == [True] and not mapped(address)
