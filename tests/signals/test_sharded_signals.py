"""A model that FSDP2 shards over two ranks gives the signals of the whole one, and is given back as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gradwise import SignalError, Signals
from gradwise.data import Collator
from gradwise.signals import collect
from gradwise.structure import block_list
from tests.conftest import some
from tests.signals.processes import contents, ended, start_ranks
from tests.signals.test_rehearsal import KernelLinear, convolved, over_batch, replaced
from tests.signals.zoo import MAKERS, VOCABULARY, leaking, make, samples

POOL = samples(24)
QUANTITIES: Any = ("loss", "embedding", "grad_norm", "grad", "head_norm")
POISON = 50

pytestmark = [
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
    """Samples with one token have no finite loss."""
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
    model: Callable[[], Any] = lambda: make("Llama")
    shard: Callable[[Any], Any] = sharded
    pool: Any = POOL
    options: dict[str, Any] = {}
    preconditioned: bool = False


CASES: dict[str, Case] = {
    "usual": Case(),
    "as accelerate": Case(shard=with_tail, options={"parameters": "all"}),
    "in one group": Case(shard=in_one_group),
    "whole gradients": Case(options={"grad_dim": None, "parameters": "all"}),
    "losses alone": Case(options={"want": ("loss",)}),
    "head alone": Case(options={"want": ("head_norm",)}),
    "a layer's embeddings": Case(options={"want": ("embedding",), "layer": 0}),
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
