"""A model that FSDP2 shards over two ranks has the signals of the whole one, and is given back as it was."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from gradwise import SignalError, Signals
from gradwise.data import Collator
from gradwise.signals import collect
from gradwise.structure import block_list
from tests.conftest import some
from tests.signals.processes import contents, ended, same_arrays, start_ranks
from tests.signals.test_engine_check import KernelLinear, convolved, over_batch, replaced
from tests.signals.zoo import MAKERS, leaking, make, samples

POOL = samples(24)
QUANTITIES: Any = ("loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding")
POISON = 50

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def sharded(model: Any, **options: Any) -> Any:
    """Each block by itself, then the rest, as is usual."""
    for block in block_list(model)[1]:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def in_one_group(model: Any) -> Any:
    return fully_shard(model)


def with_tail(model: Any) -> Any:
    """As accelerate does it: embeddings, and the last norm with the head, in units of their own."""
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model.model.embed_tokens)
    fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False)
    return fully_shard(model)


def collected(model: Any, pool: Any = POOL, **options: Any) -> Signals:
    settings: Any = {"want": QUANTITIES, "grad_dim": 16, "batch_tokens": 40, "progress": False} | options
    return collect(model, pool, **settings)


def poisoned(leaks: bool = False) -> Any:
    """Samples with a certain token have no finite loss."""
    model = leaking(make("Llama")) if leaks else make("Llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = torch.nan
    return model


def moments(model: Any) -> Any:
    """An Adam that has made a step, with gradients that do not depend on how the model is placed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(len(name))
        gradient = torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


class Case(NamedTuple):
    """What is measured, and how it is sharded."""

    model: Callable[[], Any] = lambda: make("Llama")
    shard: Callable[[Any], Any] = sharded
    pool: Any = POOL
    options: Any = MappingProxyType({})
    preconditioned: bool = False


CASES: dict[str, Case] = {
    "usual": Case(),
    "as accelerate": Case(shard=with_tail, options={"parameters": "all"}),
    "in one group": Case(shard=in_one_group),
    "whole gradients": Case(options={"grad_dim": None, "parameters": "all"}),
    "losses alone": Case(options={"want": ("loss",)}),
    "head alone": Case(options={"want": ("head_norm",)}),
    "a layer's embeddings": Case(options={"want": ("embedding",), "layer": 0}),
    "middle embeddings alone": Case(options={"want": ("middle_embedding",)}),
    "fewer batches than ranks": Case(pool=POOL[:2], options={"batch_tokens": 400}),
    "not finite": Case(poisoned, pool=[*POOL, {"input_ids": [4, POISON, 6], "labels": [4, POISON, 6]}]),
    "not finite, and leaking": Case(lambda: poisoned(leaks=True)),
    "not watched": Case(lambda: replaced(KernelLinear)),
    "convolved": Case(convolved, options={"parameters": "all"}),
    "neighbours matter": Case(over_batch),
    "half precision": Case(lambda: make("Llama", torch.float16), options={"grad_dtype": "float16"}),
    "autocast": Case(options={"autocast": torch.bfloat16}),
    "preconditioned": Case(options={"parameters": "all"}, preconditioned=True),
    "experts preconditioned": Case(lambda: make("Mixtral"), preconditioned=True),
    **{name: Case(lambda name=name: make(name), options={"parameters": "all"}) for name in MAKERS},
}

ORDINARY = ("as accelerate", "not finite", "not watched", "neighbours matter", "preconditioned", "Mixtral")


def measured(case: Case, place: Callable[[Any], Any] = lambda model: model) -> Signals:
    model = place(case.model())
    precondition = moments(model) if case.preconditioned else None
    return collected(model, case.pool, precondition=precondition, **case.options)


def _keep(rank: int, folder: Path, names: list[str]) -> None:
    for name in names:
        signals = measured(CASES[name], CASES[name].shard)
        arrays = {key: getattr(signals, key) for key in (*QUANTITIES, "num_tokens", "ok")}
        np.savez(
            folder / f"{name} {rank}.npz",
            **{key: array for key, array in arrays.items() if array is not None},
        )


@pytest.mark.parametrize("names", [list(ORDINARY), pytest.param(list(CASES), marks=pytest.mark.exhaustive)])
def test_as_in_one_process(tmp_path: Path, names: list[str]) -> None:
    """Bit for bit: each batch is what one process measures, and so are the weights it meets."""
    assert [ended(process, 300) for process in start_ranks(2, tmp_path, _keep, tmp_path, names)] == [0, 0]
    for name in names:
        one = measured(CASES[name])
        for rank in (0, 1):
            found = np.load(tmp_path / f"{name} {rank}.npz")
            assert len(found.files) > 2
            for key in found.files:
                np.testing.assert_array_equal(found[key], getattr(one, key), f"{name}: {key}")


def stepped(model: Any, optimizer: Any, pool: Any, between: Callable[[], object]) -> None:
    """A step over two micro-batches, with something in between."""
    for number, rows in enumerate((pool[:2], pool[2:4])):
        model.set_requires_gradient_sync(number == 1)
        between()
        model(**Collator(0)(rows)).loss.backward()
        between()
    optimizer.step()
    optimizer.zero_grad()


def state(model: Any) -> Any:
    """What a run must find as it was; parameters by what this rank holds."""
    modules = {
        name: (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    parameters = {
        name: (id(p), type(p), p.requires_grad, p.to_local().tolist(), _local(p.grad))
        for name, p in model.named_parameters()
    }
    groups = [
        (group.reduce_grads, group.all_reduce_grads)
        for module in model.modules()
        if isinstance(module, FSDPModule)
        for group in module._get_fsdp_state()._fsdp_param_groups
    ]
    return modules, parameters, groups, torch.get_rng_state().tolist()


def _local(gradient: Any) -> Any:
    return None if gradient is None else gradient.to_local().tolist()


def _given_back(rank: int) -> None:
    """Before the first step, between micro-batches, after a step, and after an evaluation that left
    parameters of the root whole."""
    weights = []
    for collects in (False, True):
        model = sharded(make("Llama").train())
        model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

        def look(model: Any = model, collects: bool = collects) -> None:
            if collects:
                before = state(model)
                collected(model, samples(4))
                assert state(model) == before

        look()
        stepped(model, optimizer, POOL[4 * rank :], look)
        look()
        with torch.no_grad():
            model(**Collator(0)(POOL[:2]))
        assert not isinstance(model.lm_head.weight, DTensor)
        collected(model, samples(4), want="embedding")
        assert isinstance(model.lm_head.weight, DTensor)
        stepped(model, optimizer, POOL[4 * rank :], look)
        weights.append({name: p.full_tensor() for name, p in model.named_parameters()})
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_it_is_given_back_and_trains_as_if_nobody_had_looked(tmp_path: Path) -> None:
    assert [ended(process) for process in start_ranks(2, tmp_path, _given_back)] == [0, 0]


class BrokenError(Exception):
    pass


def _one_rank_fails(rank: int, batches: int) -> None:
    """Its collator raises, in the engine check or later; all ranks raise that, and can measure afterwards."""
    calls = []

    def collator(rows: Any) -> Any:
        calls.append(1)
        if rank == 1 and len(calls) > batches:
            raise BrokenError("a collator that fails")
        return Collator(0)(rows)

    model = sharded(make("Llama"))
    with pytest.raises(BrokenError, match="a collator that fails"):
        collected(model, collator=collator)
    same_arrays(collected(model), collected(make("Llama")))


@pytest.mark.parametrize("batches", some([0, 3, 14, 20]))
def test_a_rank_that_fails_leaves_no_other_waiting(tmp_path: Path, batches: int) -> None:
    processes = start_ranks(2, tmp_path, _one_rank_fails, batches)
    assert [ended(process) for process in processes] == [0, 0]


def _fails_within(rank: int, backward: bool) -> None:
    model = sharded(make("Llama").train())

    def fail(*_: object) -> None:
        raise BrokenError("a layer that fails")

    def hook(module: object, args: object, out: Any) -> None:
        if not backward:
            fail()
        elif out.requires_grad:
            out.register_hook(fail)

    handle = model.model.layers[1].self_attn.o_proj.register_forward_hook(hook)
    before = state(model)
    with pytest.raises(BrokenError, match="a layer that fails"):
        collected(model)
    assert state(model) == before
    handle.remove()
    same_arrays(collected(model), collected(make("Llama")))


@pytest.mark.exhaustive
@pytest.mark.parametrize("backward", [False, True])
def test_it_is_given_back_when_it_raised(tmp_path: Path, backward: bool) -> None:
    processes = start_ranks(2, tmp_path, _fails_within, backward)
    assert [ended(process) for process in processes] == [0, 0]


def _to_store(rank: int, store: Path) -> None:
    """Stopped on the second rank after a block was measured, then resumed."""

    def collator(rows: Any) -> Any:
        if rank == 1 and (store / "done").exists() and any((store / "done").read_bytes()):
            raise BrokenError
        return Collator(0)(rows)

    model = sharded(make("Llama"))
    with pytest.raises(BrokenError):
        collected(model, collator=collator, store=store)
    dist.barrier()
    done = (store / "done").read_bytes()
    assert 0 < sum(done) < len(done)
    dist.barrier()
    collected(model, collator=Collator(0), store=store)


@pytest.mark.exhaustive
def test_a_store_is_that_of_one_process(tmp_path: Path) -> None:
    collected(make("Llama"), collator=Collator(0), store=tmp_path / "one")
    processes = start_ranks(2, tmp_path, _to_store, tmp_path / "two")
    assert [ended(process) for process in processes] == [0, 0]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def _mixed_precision(rank: int) -> None:
    """Gathered in bfloat16: as a model of that type."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    found = collected(sharded(make("Llama"), mp_policy=policy), parameters="all")
    one = collected(make("Llama", torch.bfloat16), parameters="all")
    for name in QUANTITIES:
        np.testing.assert_allclose(getattr(found, name), getattr(one, name), rtol=0.05, atol=0.02)


@pytest.mark.exhaustive
def test_mixed_precision(tmp_path: Path) -> None:
    assert [ended(process) for process in start_ranks(2, tmp_path, _mixed_precision)] == [0, 0]


def _others(rank: int) -> None:
    model = make("Llama")
    mesh = init_device_mesh("cpu", (2,))
    weight = model.lm_head.weight.detach()
    model.lm_head.weight = torch.nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))
    with pytest.raises(SignalError, match="by something else than FSDP2"):
        collected(model)


def test_what_is_sharded_otherwise_is_refused(tmp_path: Path) -> None:
    assert [ended(process) for process in start_ranks(2, tmp_path, _others)] == [0, 0]
