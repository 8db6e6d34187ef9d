"""How near projected gradients' inner products come to the true ones, by length and side of the projection.

Every sample's gradient over the linear weights of the blocks is taken by autograd, one sample at a time, and
kept on disk; the projection is then applied to the very matrices (`MatrixProjection` on a matrix gives what
the engine gives for the outer products it is the sum of; a test says so).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from signals_subjects import Sample, dense, errors
from torch.nn import functional

from gradwise.signals.scope import Matrix, resolve
from gradwise.signals.sums import Projector

SIZES = (256, 512, 1024, 2048, 4096, 8192)
SIDES = {1024: (32, 64, 128, 192, 256), 8192: (128, 256, 384, 512)}
"""Sides by length."""

COUNTS = {"stories": 64, "small_llama": 64, "smollm2": 16}
"""Samples of each subject: the gradients of all of them together are kept on disk."""


class Gradients:
    """All samples' gradients, one file per matrix.

    Args:
        model, samples: the loss is each sample's own mean over its label tokens.
        folder: for the files.
    """

    def __init__(self, model: Any, samples: list[Sample], folder: Path) -> None:
        self.scope = resolve(model, "blocks")
        self.count = len(samples)
        shapes = {name: tuple(p.shape) for name, p in self.scope.parameters.items()}
        self._files = {
            name: np.lib.format.open_memmap(
                folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(self.count, *shape)
            )
            for name, shape in shapes.items()
        }
        for number, sample in enumerate(samples):
            self._take(model, number, sample)

    def _take(self, model: Any, number: int, sample: Sample) -> None:
        ids, labels = torch.tensor([sample["input_ids"]]), torch.tensor(sample["labels"])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = functional.cross_entropy(logits, labels[1:])
        found = torch.autograd.grad(loss, list(self.scope.parameters.values()))
        for name, gradient in zip(self.scope.parameters, found, strict=True):
            self._files[name][number] = gradient.numpy()

    def __iter__(self) -> Iterator[tuple[Matrix, NDArray]]:
        for name, held in self._files.items():
            yield Matrix(name, None, *held.shape[1:]), np.array(held)

    def gram(self) -> NDArray:
        """(N, N) true inner products, summed in float64."""
        total = np.zeros((self.count, self.count))
        for _, held in self:
            flat = held.reshape(self.count, -1)
            for start in range(0, flat.shape[1], 2**16):
                part = flat[:, start : start + 2**16].astype(np.float64)
                total += part @ part.T
        return total

    def projected(self, projectors: dict[Any, Projector]) -> dict[Any, NDArray]:
        """(N, k) by each of several projections; the files are read once."""
        found = {name: np.zeros((self.count, one.size), np.float32) for name, one in projectors.items()}
        for matrix, held in self:
            for name, projector in projectors.items():
                found[name] += projector.matrix(matrix)(torch.from_numpy(held)).numpy()
        return found


def by_size(gradients: Gradients, gram: NDArray, seed: int) -> dict[str, Any]:
    """Errors at every length: of this projection, and of a dense Gaussian one."""
    ours = gradients.projected({size: Projector(size, seed) for size in SIZES})
    theirs = {size: dense(gram, size, seed) for size in SIZES}
    found = {"gradwise": ours, "dense": theirs}
    return {"errors": {way: {size: errors(z, gram) for size, z in by.items()} for way, by in found.items()}}


def by_side(gradients: Gradients, gram: NDArray, seed: int) -> dict[str, Any]:
    """Errors at some lengths, by the side that matrices are folded to."""
    ways = [(size, side) for size, sides in SIDES.items() for side in sides]
    found = gradients.projected({way: Projector(way[0], seed, way[1]) for way in ways})
    told = {size: {side: errors(found[size, side], gram) for side in sides} for size, sides in SIDES.items()}
    return {"errors": told}


def kinds(name: str) -> dict[str, Any]:
    """What is measured of a subject; sides on the small models only, SmolLM2's take more than 20 GiB."""
    return {"size": by_size} if name == "smollm2" else {"size": by_size, "side": by_side}


def described(gradients: Gradients, gram: NDArray) -> dict[str, Any]:
    """How many samples and parameters, and quantiles (0, 25, 50, 75, 100 %) of the true cosines between two
    samples."""
    norms = np.sqrt(np.diag(gram))
    above = (gram / np.outer(norms, norms))[np.triu_indices(len(gram), 1)]
    cosines = [float(value) for value in np.quantile(above, [0, 0.25, 0.5, 0.75, 1])]
    return {"samples": gradients.count, "parameters": gradients.scope.size, "cosines": cosines}


def multiplied(gradients: Gradients, size: int, seed: int) -> NDArray:
    """(N, k) through a dense Gaussian matrix that is really made, in parts: for checking `dense`."""
    rng, total = np.random.default_rng(seed), np.zeros((gradients.count, size))
    for _, held in gradients:
        flat = held.reshape(gradients.count, -1)
        for start in range(0, flat.shape[1], 2**14):
            part = flat[:, start : start + 2**14]
            total += part @ rng.standard_normal((part.shape[1], size), dtype=np.float32)
    return total / np.sqrt(size)
