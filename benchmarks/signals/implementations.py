"""Implementations of projected per-sample gradients, each as its documentation says.

Without a package: this package's engine, a loop, and vmap. With one: traker, bergson, dattri; they need not
be installed.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common.command_line import silence
from benchmarks.signals.cost import BASE, LOADS, SIZE, engine
from benchmarks.signals.subjects import Batch
from gradwise.signals.scope import resolve

SUBJECT = "llama10m"

Project = Callable[[Batch], Tensor]
"""(B, k) projected gradients of each sample's mean loss over the linear weights of the blocks."""


@dataclass(frozen=True)
class Peer:
    """One implementation.

    Attributes:
        make: sets up for a model and a seed, and returns what measures a batch.
        note: how it is run.
        package: what must be installed.
        seeded: whether the projection depends on the seed.
        slow: only one timed round, without warming up.
    """

    make: Callable[[Any, int], Project]
    note: str
    package: str | None = None
    seeded: bool = True
    slow: bool = False


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
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, weights)])

    return lambda batch: torch.stack([one(ids_T) for ids_T in batch["input_ids"]])


def vmap(model: Any, _: int) -> Project:
    """`torch.func.vmap` of `torch.func.grad`, unprojected."""
    model.set_attn_implementation("eager")  # vmap has no rule for the fused attention of a CPU
    scope = resolve(model, "blocks")
    chosen = {name: p.detach() for name, p in scope.parameters.items()}
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in chosen}

    def loss(weights: dict[str, Tensor], ids_T: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, {**weights, **rest}, (), _inputs(ids_T)).logits
        return functional.cross_entropy(logits[0, :-1], ids_T[1:])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))

    def measure(batch: Batch) -> Tensor:
        by_name = gradients(chosen, batch["input_ids"])
        return torch.cat([value.flatten(1) for value in by_name.values()], dim=1)

    return measure


def _inputs(ids_T: Tensor) -> dict[str, Any]:
    """With a finished mask: making one reads the data, which vmap forbids."""
    length = len(ids_T)
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    return {"input_ids": ids_T[None], "attention_mask": mask, "use_cache": False}


def with_matrix(unprojected: Callable[[Any, int], Project]) -> Callable[[Any, int], Project]:
    """The same, multiplied by a dense Gaussian matrix of P x 1,024.

    The matrix is drawn in parts for every batch; as a whole it would take 34 GB.
    """

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


def traker(model: Any, seed: int) -> Project:
    """TRAKer.featurize with a custom model output, which traker needs for a task that it does not know; its
    projector for CPUs."""
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
    rows, checkpoint = LOADS[SUBJECT].batch, iter(range(10**6))
    names = list(resolve(model, "blocks").parameters)
    trak = TRAKer(
        model=model, task=OwnMean(), train_set_size=rows, save_dir=folder, device="cpu", proj_dim=SIZE,
        use_half_precision=False, grad_wrt=names, projector_seed=seed, logging_level=logging.ERROR,
    )  # fmt: skip

    def measure(batch: Batch) -> Tensor:
        trak.load_checkpoint(model.state_dict(), model_id=next(checkpoint))
        trak.featurize(batch=[batch["input_ids"]], num_samples=rows)
        # It divides by sqrt(P) where the inner products need sqrt(k).
        stored = torch.from_numpy(np.array(trak.saver.current_store["grads"]))
        return stored * trak.normalize_factor / SIZE**0.5

    return measure


def bergson(dimension: int, target: str = "per_module") -> Callable[[Any, int], Project]:
    """InMemoryCollector under CollectorComputer, weights frozen as its own workers do."""

    def make(model: Any, seed: int) -> Project:
        from bergson.collector import collector, in_memory_collector  # pyright: ignore[reportMissingImports]
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
            with _only_embeddings_trainable(model), silence():
                memory = in_memory_collector.InMemoryCollector(
                    model=model.base_model, data=data, cfg=config, processor=processor
                )
                collector.CollectorComputer(
                    model, data, collector=memory, batches=[list(range(len(data)))], cfg=config
                ).run_with_collector_hooks()
            return torch.cat([stored.flatten(1) for stored in memory.gradients.values()], dim=1)

        return measure

    return make


@contextmanager
def _only_embeddings_trainable(model: Any) -> Iterator[None]:
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    try:
        yield
    finally:
        model.requires_grad_(True)


def dattri(method: str, dimension: int) -> Callable[[Any, int], Project]:
    """LoGra or FactGraSS: the attributor's `cache` over a loader of one batch, without a Hessian; then the
    gradients that it keeps in memory are read."""

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
            attributor = getattr(algorithm, method)(
                task=task, layer_names=names, hessian="Identity", device="cpu", proj_dim=dimension,
                offload="none", cache_dir=folder,
            )  # fmt: skip

        def measure(batch: Batch) -> Tensor:
            rows: Any = [{"input_ids": ids_T} for ids_T in batch["input_ids"]]
            loader = torch.utils.data.DataLoader(rows, batch_size=len(rows))
            with silence():
                attributor.cache(loader)
            stored = attributor.offload_manager.retrieve_gradients(0)
            return torch.cat([part.flatten(1) for part in stored], dim=1)

        return measure

    return make


MATRIX = "the matrix is drawn for every batch"
DATTRI = (("LoGra", "LoGra", 36), ("LoGra 256", "LoGra", 256), ("FactGraSS", "FactGraSS", 36))
"""Name, attributor and numbers per module."""
PEERS: dict[str, Peer] = {
    "gradwise": Peer(gradwise, "k = 1,024, loss and embedding included"),
    "loop": Peer(loop, "unprojected", seeded=False),
    "loop, dense matrix": Peer(with_matrix(loop), MATRIX, slow=True),
    "vmap": Peer(vmap, "unprojected; eager attention: vmap has no rule for the fused one", seeded=False),
    "vmap, dense matrix": Peer(with_matrix(vmap), MATRIX, slow=True),
    "traker": Peer(
        traker, "featurize; BasicProjector, its projector for CPUs, draws its matrix for every batch",
        "traker", slow=True,
    ),
    "bergson, p = 6": Peer(bergson(6), "per module, 28 x 6 x 6 numbers side by side", "bergson"),
    "bergson, p = 16": Peer(bergson(16), "per module, its usual size: 28 x 16 x 16 numbers", "bergson"),
    "bergson, global": Peer(bergson(SIZE, "global"), "all modules summed", "bergson", slow=True),
    **{
        f"dattri, {name}": Peer(
            dattri(f"{method}Attributor", size), f"28 x {size} numbers side by side", "dattri", seeded=False
        )
        for name, method, size in DATTRI
    },
}  # fmt: skip
