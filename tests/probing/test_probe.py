"""What a probe answers, against steps that were really made, and what it leaves behind: nothing."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import gradwise as gw
from gradwise.probing import preconditioned
from gradwise.probing.preconditioned import products

GROUPS, EACH = 4, 8
UNITS = [list(range(EACH * g, EACH * g + 4)) for g in range(GROUPS)]
TARGET = list(range(4, GROUPS * EACH, EACH))


def samples(seed: int = 0) -> list[dict[str, list[int]]]:
    """Four groups of samples, each with words of its own."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(GROUPS):
        shares = rng.dirichlet(np.full(60, 0.2))
        for _ in range(EACH):
            ids = (rng.choice(60, int(rng.integers(8, 14)), p=shares) + 2).tolist()
            found.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    return found


def model(*, double: bool = False, dropout: float = 0.0, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, attention_dropout=dropout,
    )  # fmt: skip
    made: Any = LlamaForCausalLM(config)
    return made.double() if double else made


def adam(weights: Any, rate: float = 1e-3, **settings: Any) -> Any:
    return torch.optim.AdamW(weights, lr=rate, weight_decay=0.1, **settings)


def sgd(weights: Any, rate: float = 1e-2) -> Any:
    return torch.optim.SGD(weights, lr=rate, momentum=0.9)


def trained(network: Any, optimizer: Any, data: Any, steps: int = 5) -> None:
    """Some real steps, so that there are moments."""
    for step in range(steps):
        real_step(network, optimizer, [data[i] for i in UNITS[step % GROUPS]])


def token_mean(network: Any, batch: list[Any]) -> torch.Tensor:
    """transformers' own loss, but in the model's precision: theirs is always in single."""
    inputs = collated(batch)
    logits = network(**{k: v for k, v in inputs.items() if k != "labels"}).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten())


def real_step(network: Any, optimizer: Any, batch: list[Any], clip: float | None = None) -> None:
    """A step of an ordinary training loop."""
    optimizer.zero_grad()
    double = network.dtype == torch.float64
    (token_mean(network, batch) if double else network(**collated(batch)).loss).backward()
    if clip:
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()


def collated(batch: list[Any]) -> dict[str, torch.Tensor]:
    return gw.Collator(0)(batch)


def own_losses(network: Any, data: list[Any]) -> np.ndarray:
    """The model's own loss of each sample, one at a time."""
    with torch.no_grad():
        return np.array([float(network(**collated([sample])).loss) for sample in data])


def everything(network: Any, optimizer: Any) -> dict[str, Any]:
    """All that may not change."""
    return copy.deepcopy(
        {
            "weights": network.state_dict(),
            "state": {i: dict(optimizer.state[p]) for i, p in enumerate(optimizer.state)},
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
            "random": (torch.random.get_rng_state(), *np.random.get_state()),
            "training": [module.training for module in network.modules()],
            "learning": [p.requires_grad for p in network.parameters()],
        }
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(itertools.starmap(same, zip(one, other, strict=True)))
    return one == other


@pytest.mark.parametrize("optimizer_of", [adam, sgd], ids=["adam", "sgd"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_looking_ahead_sees_what_a_real_step_does(optimizer_of: Callable[..., Any], clip: float | None):
    data, network = samples(), model()
    optimizer = optimizer_of(network.parameters())
    trained(network, optimizer, data)
    on = [0, 5, 9, 18, 31]
    ahead = gw.Probe(network, optimizer, data, clip=clip).lookahead(UNITS, on)
    for number, unit in enumerate(UNITS):
        twin = copy.deepcopy(network)
        other = optimizer_of(twin.parameters())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert ahead.before == pytest.approx(own_losses(twin, [data[i] for i in on]), rel=2e-6)
        real_step(twin, other, [data[i] for i in unit], clip)
        after = own_losses(twin, [data[i] for i in on])
        assert ahead.after[number] == pytest.approx(after, rel=2e-6)
        assert np.abs(after - ahead.before).max() > 1e-3, "the step did nothing that could be seen"


@pytest.mark.parametrize("optimizer_of", [adam, sgd], ids=["adam", "sgd"])
def test_both_orders_equal_real_training(optimizer_of: Callable[..., Any]):
    data, network = samples(), model()
    optimizer = optimizer_of(network.parameters())
    trained(network, optimizer, data)
    nodes, on = [UNITS[:2], UNITS[2:3], [UNITS[3], UNITS[0]]], [0, 5, 9, 18, 31]
    found = gw.Probe(network, optimizer, data, clip=0.05).orders(nodes, on)
    for first, then in itertools.product(range(3), repeat=2):
        if first == then:
            assert np.isnan(found.both[first, then]).all()
            continue
        twin = copy.deepcopy(network)
        other = optimizer_of(twin.parameters())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for losses, node in ((found.alone[first], first), (found.both[first, then], then)):
            for unit in nodes[node]:
                real_step(twin, other, [data[i] for i in unit], 0.05)
            assert losses == pytest.approx(own_losses(twin, [data[i] for i in on]), rel=2e-6)
    assert found.before == pytest.approx(own_losses(network, [data[i] for i in on]), rel=2e-6)


def test_only_what_is_asked_for_is_evaluated():
    data, network = samples(), model()
    only = np.array([[True, False, True], [False, False, False]])
    probe = gw.Probe(network, sgd(network.parameters()), data)
    some, every = probe.lookahead(UNITS[:2], [0, 9, 30], only), probe.lookahead(UNITS[:2], [0, 9, 30])
    assert np.array_equal(np.isnan(some.after), ~only)
    assert some.after[0, [0, 2]] == pytest.approx(every.after[0, [0, 2]], rel=1e-6)


def test_dropout_in_trial_steps_depends_on_the_seed_alone():
    """Neither on the mode that the model is found in nor on what was drawn before."""
    data, network = samples(), model(dropout=0.3)
    optimizer = adam(network.parameters())

    def asked(seed: int) -> list[np.ndarray]:
        probe = gw.Probe(network, optimizer, data, seed=seed)
        runs = probe.runs([UNITS[:2], UNITS[2:]], TARGET)[1]
        return [
            probe.lookahead(UNITS, TARGET).after,
            runs,
            probe.orders([UNITS[:2], UNITS[2:]], TARGET).alone,
        ]

    found = []
    for is_training, noise in ((True, 1), (False, 2)):
        network.train(is_training)
        torch.manual_seed(noise)
        found.append(asked(seed=5))
        assert network.training == is_training
    others = asked(seed=6)
    for one, same_seed, other_seed in zip(*found, others, strict=True):
        assert np.array_equal(one, same_seed) and not np.array_equal(one, other_seed)


class TestNothingIsLeftBehind:
    @pytest.mark.parametrize("steps", [0, 3], ids=["before the first step", "with moments"])
    @pytest.mark.parametrize("optimizer_of", [adam, sgd], ids=["adam", "sgd"])
    def test_after_every_question(self, steps: int, optimizer_of: Callable[..., Any]):
        data, network = samples(), model(dropout=0.2)
        optimizer = optimizer_of(network.parameters())
        trained(network, optimizer, data, steps)
        network.model.layers[0].eval()
        network.model.embed_tokens.requires_grad_(False)
        before = everything(network, optimizer)
        probe = gw.Probe(network, optimizer, data)
        probe.losses([0, 1])
        probe.lookahead(UNITS, TARGET)
        probe.orders([UNITS[:2], UNITS[2:]], TARGET)
        probe.bends(UNITS, TARGET)
        probe.sketches(UNITS)
        assert same(before, everything(network, optimizer))

    @pytest.mark.parametrize("ask", ["lookahead", "orders"])
    def test_after_an_exception_in_the_middle(self, ask: str, monkeypatch: pytest.MonkeyPatch):
        data, network = samples(), model(dropout=0.2)
        optimizer = adam(network.parameters())
        trained(network, optimizer, data)
        before = everything(network, optimizer)
        gradient = torch.ones_like(network.lm_head.weight)
        network.lm_head.weight.grad = gradient
        probe, real = gw.Probe(network, optimizer, data), gw.Probe.losses
        calls = itertools.count()

        def fails_after_a_step(self: Any, some: Any) -> Any:
            if next(calls) == 2:
                assert not same(before["weights"], network.state_dict())
                raise RuntimeError("in the middle")
            return real(self, some)

        monkeypatch.setattr(gw.Probe, "losses", fails_after_a_step)
        with pytest.raises(RuntimeError, match="in the middle"):
            getattr(probe, ask)(UNITS if ask == "lookahead" else [UNITS[:2], UNITS[2:]], TARGET)
        assert same(before, everything(network, optimizer))
        assert network.lm_head.weight.grad is gradient

    def test_a_run_continues_as_if_nobody_had_asked(self):
        data, runs = samples(), []
        for asks in (False, True):
            network = model(dropout=0.2)
            optimizer = adam(network.parameters())
            network.train()
            torch.manual_seed(3)
            for step in range(6):
                if asks:
                    probe = gw.Probe(network, optimizer, data)
                    probe.lookahead(UNITS, TARGET)
                    probe.bends(UNITS[:2], TARGET)
                real_step(network, optimizer, [data[i] for i in UNITS[step % GROUPS]])
            runs.append(network.state_dict())
        assert same(*runs)


def commuted(network: Any, optimizer: Any, data: Any) -> dict[tuple[int, int], float]:
    """What the target's loss gains, really, by the order of two steps, once momentum has run out."""
    start = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    found = {}
    for u, v in itertools.combinations(range(GROUPS), 2):
        ends = []
        for order in ((u, v), (v, u)):
            network.load_state_dict(start[0])
            optimizer.load_state_dict(copy.deepcopy(start[1]))
            for unit in order:
                real_step(network, optimizer, [data[i] for i in UNITS[unit]])
            for _ in range(250):
                for parameter in network.parameters():
                    parameter.grad = torch.zeros_like(parameter)
                optimizer.step()
            with torch.no_grad():
                ends.append(float(token_mean(network, [data[i] for i in TARGET])))
        found[u, v] = ends[1] - ends[0]
    network.load_state_dict(start[0])
    optimizer.load_state_dict(start[1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rate"), [("sgd", 1e-4), ("adam", 2e-6)])
@pytest.mark.exhaustive
def test_curvature_tells_which_order_ends_lower(kind: str, rate: float):
    agreed = []
    for seed in range(4):
        data, network = samples(seed), model(double=True, seed=seed)
        if kind == "sgd":
            optimizer = sgd(network.parameters(), rate)
        else:
            # Second moments that stay: how they move with every step is no matter of curvature.
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=rate, weight_decay=0.0, betas=(0.9, 1 - 1e-7)
            )
        trained(network, optimizer, data, 40)
        for state in optimizer.state.values():
            state["exp_avg" if kind == "adam" else "momentum_buffer"].zero_()
            if kind == "adam":
                state["step"].fill_(1e9)
                state["exp_avg_sq"].clamp_(min=1e-7)
        bends = gw.Probe(network, optimizer, data).bends(UNITS, TARGET)
        assert bends.along is not None
        for (u, v), gain in commuted(network, optimizer, data).items():
            expected = bends.along[u, v] - bends.along[v, u]
            # A step moves a tenth of its whole way at once, with a momentum of 0.9.
            assert gain == pytest.approx(0.1 * expected, rel=0.2, abs=0.02 * np.abs(bends.along).max())
            agreed.append(np.sign(expected) == np.sign(gain))
    assert np.mean(agreed) > 0.9


def test_weights_that_had_no_gradient_yet_go_no_farther_than_adam_moves_them():
    data, network = samples(), model()
    optimizer = adam(network.parameters(), 1e-3)
    rare = [{"input_ids": [62, 63, 62], "labels": [-100, 63, 62]}] * 2  # in no other sample
    trained(network, optimizer, data, 40)
    bends = gw.Probe(network, optimizer, [*data, *rare]).bends([*UNITS, [32]], [33])
    # Divided by second moments of zero, a step on the rare tokens would take six million nats off.
    assert bends.along is not None
    assert 0 < bends.towards[-1] < 4
    assert np.abs(bends.along).max() < 10


def test_reentrant_checkpoints_are_refused() -> None:
    data, network = samples(), model()
    network.gradient_checkpointing_enable({"use_reentrant": True})
    probe = gw.Probe(network, torch.optim.AdamW(network.parameters()), data)
    with pytest.raises(gw.RecipeError, match="reentrant gradient checkpointing"):
        probe.lookahead(UNITS, TARGET)
    network.gradient_checkpointing_enable({"use_reentrant": False})
    assert np.isfinite(probe.lookahead(UNITS, TARGET).after).all()


def test_products_of_bfloat16_keep_their_digits() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randn(70_000, generator=rng).bfloat16() for _ in range(3)]
    exact = np.array([[float(a.double() @ b.double()) for b in rows] for a in rows])
    assert np.abs(products(rows, rows) - exact).max() < 1e-5 * exact.max()


def test_products_are_those_of_plain_autograd():
    data, network = samples(), model(double=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    bends = gw.Probe(network, optimizer, data, batch_tokens=30).bends(UNITS, TARGET)
    weights = list(network.parameters())

    def loss(rows: list[int]) -> torch.Tensor:
        return token_mean(network, [data[i] for i in rows])

    def flat(tensors: Any) -> torch.Tensor:
        return torch.cat([t.reshape(-1) for t in tensors])

    def near(product: torch.Tensor) -> Any:
        # Norms and softmax are in single precision in transformers, whatever the model is in.
        return pytest.approx(float(product) * 0.5, rel=1e-5, abs=1e-6)

    gradients = [flat(torch.autograd.grad(loss(unit), weights)) for unit in UNITS]
    aim = flat(torch.autograd.grad(loss(TARGET), weights))
    network.set_attn_implementation("eager")
    turned = []
    for unit in UNITS:
        slope = flat(torch.autograd.grad(loss(unit), weights, create_graph=True))
        turned.append(flat(torch.autograd.grad(slope @ (0.5 * aim), weights)))
    for i, j in itertools.product(range(GROUPS), repeat=2):
        assert bends.gains[i, j] == pytest.approx(
            float(gradients[i] @ gradients[j]) * 0.5, rel=1e-5, abs=1e-6
        )
        assert bends.along[i, j] == near(turned[i] @ gradients[j])  # type: ignore[index]
        assert bends.towards[j] == near(aim @ gradients[j])
    assert bends.target_loss == pytest.approx(float(loss(TARGET).detach()), rel=1e-6)


def test_sketches_stand_in_where_vectors_do_not_fit(monkeypatch: pytest.MonkeyPatch):
    data, network = samples(), model()
    probe = gw.Probe(network, torch.optim.SGD(network.parameters(), lr=0.5), data)
    exact = probe.bends(UNITS, TARGET)
    monkeypatch.setattr(preconditioned, "EXACT_BYTES", 0)
    monkeypatch.setattr(preconditioned, "SKETCH", 4096)
    sketched = probe.bends(UNITS, TARGET)
    lengths = np.sqrt(np.diag(exact.gains))
    assert not np.array_equal(exact.gains, sketched.gains)
    assert np.abs(exact.gains - sketched.gains).max() < 0.1 * np.outer(lengths, lengths).max()


def test_a_probe_has_a_target_of_its_own():
    data, network = samples(), model()
    probe = gw.Probe(network, sgd(network.parameters()), data[:16], target=data[16:20])
    assert probe.target.tolist() == [16, 17, 18, 19]
    assert probe.losses(probe.target) == pytest.approx(own_losses(network, data[16:20]), rel=1e-6)


def test_nothing_to_move_and_nothing_to_learn_are_said():
    data, network = samples(), model()
    optimizer = sgd(network.parameters())
    silent = [{"input_ids": [5, 6], "labels": [-100, -100]}]
    with pytest.raises(gw.SignalError, match="no label token"):
        gw.Probe(network, optimizer, silent).lookahead([[0]], [0])
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(gw.SignalError, match="No parameter of the model requires a gradient"):
        gw.Probe(network, optimizer, data).bends(UNITS, TARGET)
