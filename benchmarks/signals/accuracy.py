"""Accuracy of projected gradients: errors of their inner products, by length and side of the projection.

    python -m benchmarks.signals.accuracy                       # half an hour on one core
    python -m benchmarks.signals.accuracy --subjects stories    # a minute

Errors (<z_i, z_j> - <g_i, g_j>) / (|g_i| |g_j|): root mean squares over pairs of samples, and over samples
with themselves (`own`, squared lengths), over all seeds. The errors of the dense Gaussian projection are
drawn from their exact distribution, which depends only on the exact inner products. Mean loss of each sample,
linear weights of the blocks, trained models. The bias is the mean error of pairs over the seeds, with its
standard error.

Autograd computes the gradients, one sample at a time; they are stored on disk and then projected. A test
shows that `MatrixProjection` on a matrix gives the same as the engine, which applies it to the outer products
that the matrix is the sum of.
"""

import math
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks.common.command_line import Script, names_among
from benchmarks.common.figure_style import BLUE, VERMILION, panels, save
from benchmarks.common.result_file import ResultFile
from benchmarks.common.tables import Claim, Content, Page, number, of_kind, table
from benchmarks.signals.subjects import TITLES, Sample, dense, errors, root_mean_square, subject
from gradwise.signals.scope import Matrix, resolve
from gradwise.signals.sums import Projector

SIZES = (256, 512, 1024, 2048, 4096, 8192)
SIDES = {1024: (32, 64, 128, 192, 256), 8192: (128, 256, 384, 512)}
"""Sides by length."""

COUNTS = {"stories": 64, "small_llama": 64, "smollm2": 16}
"""Samples of each subject; the gradients of all of them are stored on disk together."""


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
        for row, sample in enumerate(samples):
            self._store(model, row, sample)

    def _store(self, model: Any, row: int, sample: Sample) -> None:
        ids, labels = torch.tensor([sample["input_ids"]]), torch.tensor(sample["labels"])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = functional.cross_entropy(logits, labels[1:])
        gradients = torch.autograd.grad(loss, list(self.scope.parameters.values()))
        for name, gradient in zip(self.scope.parameters, gradients, strict=True):
            self._files[name][row] = gradient.numpy()

    def __iter__(self) -> Iterator[tuple[Matrix, NDArray]]:
        for name, stored in self._files.items():
            yield Matrix(name, None, *stored.shape[1:]), np.array(stored)

    def _slices(self, width: int) -> Iterator[NDArray]:
        """(N, at most `width`) parts of the flat gradients."""
        for _, stored in self:
            flat = stored.reshape(self.count, -1)
            for start in range(0, flat.shape[1], width):
                yield flat[:, start : start + width]

    def gram(self) -> NDArray:
        """(N, N) exact inner products, summed in float64."""
        total = np.zeros((self.count, self.count))
        for part in self._slices(2**16):
            exact = part.astype(np.float64)
            total += exact @ exact.T
        return total

    def projected(self, projectors: dict[Any, Projector]) -> dict[Any, NDArray]:
        """(N, k) by each of several projections; the files are read once."""
        totals = {name: np.zeros((self.count, one.size), np.float32) for name, one in projectors.items()}
        for matrix, stored in self:
            for name, projector in projectors.items():
                totals[name] += projector.matrix(matrix)(torch.from_numpy(stored)).numpy()
        return totals

    def multiplied(self, size: int, seed: int) -> NDArray:
        """(N, k) through a dense Gaussian matrix, in parts: a check of `dense`."""
        rng, total = np.random.default_rng(seed), np.zeros((self.count, size))
        for part in self._slices(2**14):
            total += part @ rng.standard_normal((part.shape[1], size), dtype=np.float32)
        return total / np.sqrt(size)


def by_size(gradients: Gradients, gram: NDArray, seed: int) -> dict[str, Any]:
    """Errors at every length: of gradwise's projection, and of a dense Gaussian one."""
    ours = gradients.projected({size: Projector(size, seed) for size in SIZES})
    both = {"gradwise": ours, "dense": {size: dense(gram, size, seed) for size in SIZES}}
    return {"errors": {name: {size: errors(z, gram) for size, z in by.items()} for name, by in both.items()}}


def by_side(gradients: Gradients, gram: NDArray, seed: int) -> dict[str, Any]:
    """Errors at some lengths, by the side that matrices are folded to."""
    pairs = [(size, side) for size, sides in SIDES.items() for side in sides]
    z = gradients.projected({(size, side): Projector(size, seed, side) for size, side in pairs})
    return {"errors": {n: {side: errors(z[n, side], gram) for side in sides} for n, sides in SIDES.items()}}


def kinds(name: str) -> dict[str, Any]:
    """Measurements of a subject; sides only for the small models, SmolLM2's take more than 20 GiB."""
    return {"size": by_size} if name == "smollm2" else {"size": by_size, "side": by_side}


def described(gradients: Gradients, gram: NDArray) -> dict[str, Any]:
    """Number of samples and parameters, and quartiles of the exact cosines between two samples."""
    norms = np.sqrt(np.diag(gram))
    above = (gram / np.outer(norms, norms))[np.triu_indices(len(gram), 1)]
    cosines = [float(value) for value in np.quantile(above, [0, 0.25, 0.5, 0.75, 1])]
    return {"samples": gradients.count, "parameters": gradients.scope.size, "cosines": cosines}


def page(content: Content) -> Page:
    parts = ["![Errors by length](figures/signals-accuracy.png)"]
    ratios = []
    for name, title in TITLES.items():
        if entries := list(of_kind(content, f"size/{name}").values()):
            parts += _sizes(content["entries"][f"true/{name}"], title, entries)
            ratios.append(_rms(entries, "gradwise", "1024", 0) / _rms(entries, "dense", "1024", 0))
        if entries := list(of_kind(content, f"side/{name}").values()):
            parts += _sides(title, entries)
    claim = f"Error of inner products over a dense Gaussian projection's, k = 1,024, {len(ratios)} models"
    return Page(
        sections=parts,
        claims=[Claim(claim, f"{min(ratios):.2f} to {max(ratios):.2f}")],
    )


def _rms(entries: list[dict[str, Any]], projection: str, size: str, place: int) -> float:
    return root_mean_square([entry["errors"][projection][size][place] for entry in entries])


def _sizes(true: dict[str, Any], title: str, entries: list[dict[str, Any]]) -> list[str]:
    rows = []
    for size in entries[0]["errors"]["gradwise"]:
        cells = []
        for place in (0, 1):
            ours, theirs = (_rms(entries, projection, size, place) for projection in ("gradwise", "dense"))
            cells += [number(ours, 4), number(theirs, 4), f"{ours / theirs:.2f}"]
        biases = [entry["errors"]["gradwise"][size][2] for entry in entries]
        rows.append([f"{int(size):,}", *cells, _with_error(biases)])
    text = (
        f"**By length, {title}**: {true['samples']} samples, {true['parameters']:,} parameters, "
        f"{len(entries)} seeds; cosines between samples from {true['cosines'][0]:.2f} to "
        f"{true['cosines'][4]:.2f}, median {true['cosines'][2]:.2f}."
    )
    return [text, table(["k", "pairs", "dense", "ratio", "own", "dense", "ratio", "bias"], rows)]


def _with_error(values: list[float]) -> str:
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):+.4f} ± {number(spread, 4)}"


def _sides(title: str, entries: list[dict[str, Any]]) -> list[str]:
    rows = [
        [f"{int(size):,}", side, *(number(_rms(entries, size, side, place), 4) for place in (0, 1))]
        for size, sides in entries[0]["errors"].items()
        for side in sides
    ]
    return [
        f"**By the side that matrices are folded to, {title}**:",
        table(["k", "side", "pairs", "own"], rows),
    ]


STYLES: dict[str, dict[str, Any]] = {
    "gradwise": {"color": BLUE, "marker": "o", "linestyle": "-", "label": "gradwise"},
    "dense": {"color": VERMILION, "marker": "s", "linestyle": "--", "label": "dense Gaussian"},
}


def curves(content: Content, name: str) -> dict[str, dict[int, list[float]]]:
    """By projection and length: the error between pairs, one for each seed."""
    points: dict[str, dict[int, list[float]]] = {}
    for entry in of_kind(content, f"size/{name}").values():
        for projection, sizes in entry["errors"].items():
            for size, (pairs, _, _) in sizes.items():
                points.setdefault(projection, {}).setdefault(int(size), []).append(pairs)
    return points


def draw(content: Content, folder: Path) -> None:
    """One panel per subject, both axes logarithmic; a band from the lowest seed to the highest."""
    names = [name for name in COUNTS if of_kind(content, f"size/{name}")]
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        for projection, points in curves(content, name).items():
            sizes, style = sorted(points), STYLES[projection]
            axis.plot(sizes, [root_mean_square(points[size]) for size in sizes], markersize=4, **style)
            low, high = ([pick(points[size]) for size in sizes] for pick in (min, max))
            axis.fill_between(sizes, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(SIZES, [f"{size:,}" for size in SIZES], fontsize=8)
        axis.set_yticks([0.01, 0.02, 0.04, 0.08], ["0.01", "0.02", "0.04", "0.08"])
        axis.minorticks_off()
        axis.set_title(TITLES[name].removeprefix("the "), fontsize=9)
        axis.set_xlabel("numbers per sample, k")
    axes[0].set_ylabel("RMS error / (|g| |g'|)")
    axes[0].legend(frameon=False)
    save(figure, folder / "signals-accuracy.png")


SCRIPT = Script(__doc__, "signals-accuracy")
SCRIPT.add_argument("--subjects", type=names_among(COUNTS), default=list(COUNTS), help=", ".join(COUNTS))
SCRIPT.add_argument("--seeds", type=int, default=5, help="projections (default: 5)")


def main() -> None:
    torch.set_num_threads(1)
    options, result = SCRIPT.start()
    for name in options.subjects:
        keys = [f"{kind}/{name}/{seed}" for kind in kinds(name) for seed in range(options.seeds)]
        if not all(key in result for key in keys):
            _measure(result, name, options.seeds)


def _measure(result: ResultFile, name: str, seeds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
        gradients = Gradients(*subject(name, COUNTS[name]), Path(folder))
        gram = gradients.gram()
        result.once(f"true/{name}", partial(described, gradients, gram))
        for kind, measured in kinds(name).items():
            for seed in range(seeds):
                result.once(f"{kind}/{name}/{seed}", partial(measured, gradients, gram, seed))


if __name__ == "__main__":
    main()
