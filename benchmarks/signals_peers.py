"""Other ways to projected per-sample gradients, each as its documentation says, on the same model and batch.

    python benchmarks/signals_peers.py time PEER OUT.json ROUNDS GRAM.npy
    python benchmarks/signals_peers.py memory PEER OUT.json

One peer per process; every timed round runs an ordinary forward + backward and then the peer. `signals.py`
starts the processes, with another interpreter (`--peers-python`) where the packages are installed there. What
cannot run is told, with the reason.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from signals_cost import BASE, LOADS, SIZE, engine, loaded
from signals_subjects import Batch, errors, in_turn, ordinary, peak_over_now, quiet
from torch import Tensor
from torch.nn import functional

from gradwise.atomic import write_json
from gradwise.signals.scope import Scope, resolve

SUBJECT = "llama10m"
SEEDS = 5
"""Projections of each peer whose seed can be set and that takes seconds; of the others one."""

Project = Callable[[Batch], Tensor]
"""(B, k) projected gradients of a batch's own-mean losses over the linear weights of the blocks."""


@dataclass(frozen=True)
class Peer:
    """One way.

    Attributes:
        make: given a model and a seed, sets up and returns what measures a batch.
        package: what must be installed.
        seeded: whether the projection follows the seed.
        slow: one timed round only, the first.
        note: what to know about how it was run.
    """

    make: Callable[[Any, int], Project]
    package: str | None = None
    seeded: bool = True
    slow: bool = False
    note: str = ""


# ---- without a package -------------------------------------------------------------------------------------


def gradwise(model: Any, seed: int) -> Project:
    """This package's engine, loss and embedding included."""
    measure = engine(model, BASE, None, seed)
    return lambda batch: measure(batch).values["grad"]


def loop(model: Any, _: int) -> Project:
    """Autograd, one sample at a time, unprojected."""
    names = list(resolve(model, "blocks").parameters)
    weights = [model.get_parameter(name) for name in names]

    def one(ids_T: Tensor) -> Tensor:
        loss = model(input_ids=ids_T[None], labels=ids_T[None], use_cache=False).loss
        return torch.cat([found.flatten() for found in torch.autograd.grad(loss, weights)])

    return lambda batch: torch.stack([one(ids_T) for ids_T in batch["input_ids"]])


def vmap(model: Any, _: int) -> Project:
    """`torch.func.vmap` of `torch.func.grad`, unprojected."""
    model.set_attn_implementation("eager")  # vmap knows no rule for the fused attention of a CPU
    scope = resolve(model, "blocks")
    chosen = {name: p.detach() for name, p in scope.parameters.items()}
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in chosen}

    def loss(weights: dict[str, Tensor], ids_T: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, {**weights, **rest}, (), _inputs(ids_T)).logits
        return functional.cross_entropy(logits[0, :-1], ids_T[1:])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))

    def measure(batch: Batch) -> Tensor:
        found = gradients(chosen, batch["input_ids"])
        return torch.cat([value.flatten(1) for value in found.values()], dim=1)

    return measure


def _inputs(ids_T: Tensor) -> dict[str, Any]:
    """A ready mask: making one looks at the data, which vmap forbids."""
    length = len(ids_T)
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    return {"input_ids": ids_T[None], "attention_mask": mask, "use_cache": False}


def with_matrix(unprojected: Callable[[Any, int], Project]) -> Callable[[Any, int], Project]:
    """The same, then multiplied by a dense Gaussian matrix of P x 1,024, drawn anew in parts for every batch:
    as a whole it would take 34 GB."""

    def make(model: Any, seed: int) -> Project:
        measure = unprojected(model, seed)

        def project(batch: Batch) -> Tensor:
            whole, rng = measure(batch), torch.Generator().manual_seed(seed)
            total = whole.new_zeros(len(whole), SIZE)
            for part in whole.split(2**16, dim=1):
                total.addmm_(part, torch.randn(part.shape[1], SIZE, generator=rng))
            return total / SIZE**0.5

        return project

    return make


# ---- packages ----------------------------------------------------------------------------------------------


def traker(model: Any, seed: int) -> Project:
    """TRAKer.featurize with a model output of our own, as for any task it has none for; its projector for
    CPUs."""
    from trak import TRAKer  # pyright: ignore[reportMissingImports]
    from trak.modelout_functions import AbstractModelOutput  # pyright: ignore[reportMissingImports]

    class OwnMean(AbstractModelOutput):
        def __init__(self) -> None: ...

        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, ids_T: Tensor) -> Tensor:
            logits = torch.func.functional_call(model, (weights, buffers), (), _inputs(ids_T)).logits
            return functional.cross_entropy(logits[0, :-1], ids_T[1:])

        def get_out_to_loss_grad(self, _model: Any, _weights: Any, _buffers: Any, batch: Any) -> Tensor:
            return torch.ones(len(batch[0]), 1)

    model.set_attn_implementation("eager")
    folder = tempfile.mkdtemp(prefix="gradwise-bench-")
    rows, number = LOADS[SUBJECT].batch, iter(range(10**6))
    names = list(resolve(model, "blocks").parameters)
    made = TRAKer(
        model=model, task=OwnMean(), train_set_size=rows, save_dir=folder, device="cpu", proj_dim=SIZE,
        use_half_precision=False, grad_wrt=names, projector_seed=seed, logging_level=logging.ERROR,
    )  # fmt: skip

    def measure(batch: Batch) -> Tensor:
        made.load_checkpoint(model.state_dict(), model_id=next(number))
        made.featurize(batch=[batch["input_ids"]], num_samples=rows)
        # It divides by sqrt(P) where the inner products need sqrt(k).
        found = torch.from_numpy(np.array(made.saver.current_store["grads"]))
        return found * made.normalize_factor / SIZE**0.5

    return measure


def bergson(dimension: int, target: str = "per_module") -> Callable[[Any, int], Project]:
    """InMemoryCollector under CollectorComputer, weights frozen as its own workers do."""

    def make(model: Any, seed: int) -> Project:
        from bergson.collector.collector import CollectorComputer  # pyright: ignore[reportMissingImports]
        from bergson.collector.in_memory_collector import (  # pyright: ignore[reportMissingImports]
            InMemoryCollector,
        )
        from bergson.config.config import IndexConfig  # pyright: ignore[reportMissingImports]
        from bergson.gradients import GradientProcessor  # pyright: ignore[reportMissingImports]
        from datasets import Dataset

        folder = tempfile.mkdtemp(prefix="gradwise-bench-")
        Path(f"{folder}/run.part").mkdir()
        config = IndexConfig(run_path=f"{folder}/run", loss_reduction="mean", projection_dim=dimension)
        processor = GradientProcessor(
            projection_dim=dimension, projection_target=target, projection_seed=seed
        )

        def measure(batch: Batch) -> Tensor:
            data = Dataset.from_dict({"input_ids": batch["input_ids"].tolist()})
            with _only_embeddings_learn(model), quiet():
                collector = InMemoryCollector(
                    model=model.base_model, data=data, cfg=config, processor=processor
                )
                CollectorComputer(
                    model, data, collector=collector, batches=[list(range(len(data)))], cfg=config
                ).run_with_collector_hooks()
            return torch.cat([found.flatten(1) for found in collector.gradients.values()], dim=1)

        return measure

    return make


def _only_embeddings_learn(model: Any) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def block() -> Iterator[None]:
        model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)
        try:
            yield
        finally:
            model.requires_grad_(True)

    return block()


def dattri(method: str, dimension: int) -> Callable[[Any, int], Project]:
    """LoGra or FactGraSS: the attributor's `cache` over a loader of one batch, without a Hessian; the
    gradients it keeps in memory are then read."""

    def make(model: Any, _: int) -> Project:
        from dattri import algorithm  # pyright: ignore[reportMissingImports]
        from dattri.task import AttributionTask  # pyright: ignore[reportMissingImports]

        def loss(model: Any, batch: Any, _device: str) -> Tensor:
            ids_BT = batch["input_ids"]
            logits = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].flatten(0, 1)
            losses = functional.cross_entropy(logits, ids_BT[:, 1:].flatten(), reduction="none")
            return losses.mean()  # it multiplies by the number of samples itself

        names = [name.removesuffix(".weight") for name in resolve(model, "blocks").parameters]
        task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
        with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
            made = getattr(algorithm, method)(
                task=task, layer_names=names, hessian="Identity", device="cpu", proj_dim=dimension,
                offload="none", cache_dir=folder,
            )  # fmt: skip

        def measure(batch: Batch) -> Tensor:
            rows: Any = [{"input_ids": ids_T} for ids_T in batch["input_ids"]]
            loader = torch.utils.data.DataLoader(rows, batch_size=len(rows))
            with quiet():
                made.cache(loader)
            return torch.cat(
                [found.flatten(1) for found in made.offload_manager.retrieve_gradients(0)], dim=1
            )

        return measure

    return make


PEERS: dict[str, Peer] = {
    "gradwise": Peer(gradwise, note="k = 1,024, loss and embedding included"),
    "loop": Peer(loop, seeded=False, note="unprojected"),
    "loop, dense matrix": Peer(with_matrix(loop), slow=True, note="the matrix is drawn anew for every batch"),
    "vmap": Peer(vmap, seeded=False, note="unprojected; eager attention: vmap has no rule for the fused one"),
    "vmap, dense matrix": Peer(with_matrix(vmap), slow=True, note="the matrix is drawn anew for every batch"),
    "traker": Peer(
        traker, "traker", slow=True,
        note="featurize; BasicProjector, its projector for CPUs, draws its matrix anew for every batch",
    ),
    "bergson, p = 6": Peer(bergson(6), "bergson", note="per module, 28 x 6 x 6 numbers side by side"),
    "bergson, p = 16": Peer(bergson(16), "bergson", note="per module, its usual size: 28 x 16 x 16 numbers"),
    "bergson, global": Peer(bergson(SIZE, "global"), "bergson", slow=True, note="all modules summed"),
    "dattri, LoGra": Peer(
        dattri("LoGraAttributor", 36), "dattri", seeded=False, note="28 x 36 numbers side by side"
    ),
    "dattri, LoGra 256": Peer(
        dattri("LoGraAttributor", 256), "dattri", seeded=False, note="28 x 256 numbers side by side"
    ),
    "dattri, FactGraSS": Peer(
        dattri("FactGraSSAttributor", 36), "dattri", seeded=False, note="28 x 36 numbers side by side"
    ),
}  # fmt: skip


# ---- one peer ----------------------------------------------------------------------------------------------


def run(name: str, measured: Callable[[Peer], dict[str, Any]]) -> dict[str, Any]:
    """What is measured of a peer; or why nothing is."""
    peer = PEERS[name]
    entry: dict[str, Any] = {"peer": name, "note": peer.note, "package": _package(peer.package)}
    if peer.package and entry["package"] is None:
        return {**entry, "problem": f"{peer.package} is not installed"}
    try:
        return entry | measured(peer)
    except Exception as error:
        return {**entry, "problem": f"{type(error).__name__}: {str(error)[:300]}"}


def peak(peer: Peer) -> dict[str, Any]:
    """The highest that resident memory rises over the loaded model, matrices and all, by one batch."""
    model, batches = loaded(SUBJECT)
    with peak_over_now() as found:
        peer.make(model, 0)(batches[0])
    return {"peak": found[0]}


def time_and_errors(peer: Peer, gram: NDArray, rounds: int) -> dict[str, Any]:
    """Seconds beside ordinary training's, and how far the inner products are from the true ones."""
    model, batches = loaded(SUBJECT)
    batch = batches[0]
    _check_scope(model)
    measure = peer.make(model, 0)
    found: list[NDArray] = []

    def one(_: int) -> None:
        found[:] = [measure(batch).detach().numpy()]

    arms = {"ordinary": lambda _: ordinary(model, batch), "peer": one}
    seconds = in_turn(arms, 1 if peer.slow else rounds, warm=not peer.slow)
    if peer.seeded and not peer.slow:
        found += [peer.make(model, seed)(batch).detach().numpy() for seed in range(1, SEEDS)]
    return {"seconds": seconds, **inner_products(found, gram)}


def inner_products(found: list[NDArray], gram: NDArray) -> dict[str, Any]:
    """Errors of projections as they come; and after one factor for all that makes squared lengths right on
    average, for what does not scale its projections."""
    width = found[0].shape[1]
    squares = [np.sum(one.astype(np.float64) ** 2) for one in found]
    scale = float(np.mean(squares) / np.trace(gram))
    return {
        "numbers": width,
        "scale": scale,
        "errors": [errors(one, gram) for one in found],
        "scaled_errors": [errors(one / np.sqrt(scale), gram) for one in found],
    }


def true_gram() -> NDArray:
    """(B, B) inner products of the batch's unprojected gradients."""
    model, batches = loaded(SUBJECT)
    whole = loop(model, 0)(batches[0])
    total = torch.zeros(len(whole), len(whole), dtype=torch.float64)
    for part in whole.split(2**18, dim=1):
        total += part.double() @ part.double().T
    return total.numpy()


def _check_scope(model: Any) -> None:
    scope: Scope = resolve(model, "blocks")
    linear = sum(isinstance(module, torch.nn.Linear) for module in model.base_model.modules())
    assert len(scope.parameters) == linear, "every package must be measured on the same weights"


def _package(name: str | None) -> str | None:
    try:
        return None if name is None else f"{name} {version(name)}"
    except PackageNotFoundError:
        return None


def main(part: str, name: str, out: str, rounds: str = "1", gram: str = "") -> None:
    """Measure one peer and write what was found."""
    torch.set_num_threads(1)
    if part == "memory":
        found = run(name, peak)
    else:
        found = run(name, lambda peer: time_and_errors(peer, np.load(gram), int(rounds)))
    write_json(Path(out), json.loads(json.dumps(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
