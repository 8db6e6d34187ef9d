"""A model sharded by FSDP2 over two processes draws the layers and gets the weights that one process gets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

import gradwise as gw
from gradwise import LayerSwitch, RecipeError
from gradwise.methods import Grass
from gradwise.numerics import fold_with_signs
from tests.training.sharded_runs import SAMPLED, launch
from tests.training.sharded_worker import main, train

STEPS, STOPPED = 6, 3

POLICIES: dict[str, dict[str, Any]] = {
    # Drawn from the start, so that the first forward pass has frozen blocks.
    "lisa": {"method": "lisa", "active": 2, "period": 2, "embeddings": "always"},
    "grass": {"method": "grass", "active": 2, "period": 2, "probe": 2},
    "grass, state offloaded": {"method": "grass", "active": 2, "period": 2, "probe": 2, "state": "offload"},
    "grass, with embeddings, state dropped": SAMPLED,
}


def test_sketches_of_shards_add_up() -> None:
    values = torch.randn(7, 5)
    whole = fold_with_signs(values, 8, seed=3, offset=2)
    parts = [
        fold_with_signs(values[rows], 8, seed=3, offset=2, part=(rows.start * 5, 35))
        for rows in (slice(0, 4), slice(4, 7))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every policy on one process and on two, from the start, stopped within an interval, and resumed from
    what the other number of ranks saved."""
    folder = tmp_path_factory.mktemp("sharded")
    names = {name: str(number) for number, name in enumerate(POLICIES)}
    for name, policy in POLICIES.items():
        train(policy, STEPS, folder / f"one-{names[name]}")
        train(policy, STOPPED, folder / f"one-{names[name]}-stopped")
    jobs = []
    for name, policy in POLICIES.items():
        two = str(folder / f"two-{names[name]}")
        jobs += [
            {"policy": policy, "steps": STEPS, "out": two},
            {"policy": policy, "steps": STOPPED, "out": f"{two}-stopped"},
            {
                "policy": policy,
                "steps": STEPS,
                "out": f"{two}-resumed",
                "resume": str(folder / f"one-{names[name]}-stopped.pt"),
            },
        ]
    jobs.append({"one_row": True, "out": str(folder / "one_row")})
    launch(folder, jobs, main)
    for name, policy in POLICIES.items():
        stopped = folder / f"two-{names[name]}-stopped.pt"
        train(policy, STEPS, folder / f"one-{names[name]}-resumed", resume=stopped)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("which", ["two-{}", "two-{}-resumed", "one-{}-resumed"])
def test_one_process_is_two(runs: Path, name: str, which: str) -> None:
    number = list(POLICIES).index(name)
    one, other = f"one-{number}", which.format(number)
    a, b = (json.loads((runs / f"{each}.json").read_text()) for each in (one, other))
    assert a["draws"][-len(b["draws"]) :] == b["draws"]
    assert a["losses"][-len(b["losses"]) :] == pytest.approx(b["losses"], abs=1e-5)
    assert a["scores"] == pytest.approx(b["scores"], rel=1e-4)
    weights, others = (torch.load(runs / f"{each}.pt", weights_only=True)["model"] for each in (one, other))
    start = torch.load(runs / f"one-{number}-stopped.pt", weights_only=True)["model"]
    for key, value in weights.items():
        torch.testing.assert_close(others[key], value, rtol=0, atol=2e-5)
    assert any((weights[key] - start[key]).abs().max() > 1e-3 for key in weights)


@pytest.mark.slow
def test_offloaded_state_is_kept_state_bit_for_bit(runs: Path) -> None:
    kept, offloaded = (
        torch.load(runs / f"two-{list(POLICIES).index(name)}.pt", weights_only=True)
        for name in ("grass", "grass, state offloaded")
    )
    assert all(torch.equal(values, offloaded["model"][key]) for key, values in kept["model"].items())
    for name, state in kept["optimizer"]["state"].items():
        assert all(
            torch.equal(value, offloaded["optimizer"]["state"][name][key]) for key, value in state.items()
        )


@pytest.mark.slow
def test_a_rank_may_hold_nothing_of_a_parameter(runs: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(4):
        torch.manual_seed(step)
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = torch.load(runs / "one_row.pt", weights_only=True)
    for weights, state in zip(found["weights"], found["states"], strict=True):
        for number, parameter in enumerate(model.parameters()):
            torch.testing.assert_close(weights[number], parameter.detach(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(state[number]["exp_avg"], optimizer.state[parameter]["exp_avg"])
            assert state[number]["step"] == 4


class TestRefusals:
    @pytest.fixture
    def one_rank(self, tmp_path: Path) -> Any:
        meeting = f"file://{tmp_path}/meeting"
        torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=meeting)
        yield init_device_mesh("cpu", (1,))
        torch.distributed.destroy_process_group()

    @pytest.mark.parametrize(
        ("policy", "options", "words"),
        [
            (Grass(active=2), {"average_ranks": True}, "average_ranks"),
            (Grass(active=2), {"in_backward": True}, "in_backward"),
        ],
    )
    def test_what_it_cannot_do_is_refused(
        self, one_rank: Any, tiny_llama: Any, policy: Grass, options: dict[str, bool], words: str
    ) -> None:
        from torch.distributed.fsdp import fully_shard

        model = tiny_llama()
        fully_shard(model, mesh=one_rank)
        optimizer = torch.optim.AdamW(model.parameters())
        with pytest.raises(RecipeError, match=words):
            LayerSwitch(model, policy, optimizer, **options)

    def test_a_model_that_is_sharded_in_part_is_refused(self, one_rank: Any, tiny_llama: Any) -> None:
        model = tiny_llama()
        weight = distribute_tensor(model.lm_head.weight.detach(), one_rank, [Replicate()])
        model.lm_head.weight = torch.nn.Parameter(weight)
        with pytest.raises(RecipeError, match="call fully_shard on the whole model"):
            LayerSwitch(model, Grass(active=2), torch.optim.AdamW(model.parameters()))

    def test_a_trainer_gets_no_model_that_was_sharded_by_hand(
        self, one_rank: Any, tiny_llama: Any, arguments: Any
    ) -> None:
        from torch.distributed.fsdp import fully_shard

        model = tiny_llama()
        fully_shard(model, mesh=one_rank)
        with pytest.raises(RecipeError, match="from_pretrained shards"):
            gw.Trainer(model, arguments(), train_dataset=[{"input_ids": [1, 2], "labels": [1, 2]}])
