"""Asks a model that is being trained what a step would change: by trying one, or by its second derivative.

Notation: theta the weights, g_u the gradient of the token-mean loss of samples u, P what the optimizer makes
of a gradient in the long run (learning rate included), H_u the Hessian of their loss.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradwise.errors import RecipeError, SignalError
from gradwise.precision import autocast_here, autocasting
from gradwise.probing.preconditioned import Preconditioned, Vectors, products, rate_of, sketch
from gradwise.probing.restoring import restoring
from gradwise.probing.results import GradientProducts, LookaheadLosses, Orders
from gradwise.signals.head import LabelPositions
from gradwise.signals.model_state import evaluating, uncompiled, unwrapped
from gradwise.signals.rows import wide
from gradwise.signals.samples import check_indexable
from gradwise.signals.vocabulary import padding_collator

SampleIndices = Sequence[int] | NDArray[np.int64]


class Probe:
    """What needs a live model asks this; model, optimizer and random states are given back bit for bit.

    Args:
        model: a causal language model, whole in this process; parameters that require a gradient move.
        optimizer: holds them, with the moments and learning rates that the next step would use.
        dataset: anything indexable of {"input_ids": [...], "labels": [...]}.
        collator: makes a padded batch with "labels" out of samples; padding on the right by default.
        target: a data set whose loss is to fall; `target` then names its samples.
        clip: longest gradient of a step, as the training clips it; None or 0 for no clipping.
        batch_tokens: padded tokens in one forward pass.
        autocast: what forward passes compute in, as in `gradwise.collect`.
        seed: decides dropout in trial steps.

    Example:
        probe = Probe(model, optimizer, dataset)
        ahead = probe.lookahead([[0, 1], [2, 3]], on=[0, 1, 2, 3])
        helps = ahead.before - ahead.after      # (2, 4) nats
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        dataset: Any,
        collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        *,
        target: Any = None,
        clip: float | None = None,
        batch_tokens: int = 4096,
        autocast: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module) or not hasattr(optimizer, "param_groups"):
            raise RecipeError(
                "A Probe needs a model and its optimizer; found "
                f"{type(model).__name__} and {type(optimizer).__name__}."
            )
        check_indexable(dataset)
        self.model: Any = uncompiled(model)
        self.optimizer = unwrapped(optimizer)
        self.dataset, self._target_samples = dataset, [] if target is None else target
        self.collator = collator or padding_collator(self.model)
        self.clip, self.batch_tokens, self.seed = clip, batch_tokens, seed
        self.device = next(self.model.parameters()).device
        self.autocast = autocast or autocast_here(self.device)
        check_precision(self.autocast)

    @property
    def target(self) -> NDArray[np.int64]:
        """The target's samples, which follow those of the data set; none where no target was given."""
        return len(self.dataset) + np.arange(len(self._target_samples))

    @property
    def rate(self) -> float:
        """The largest learning rate of the next step; the peak's where a warm-up begins with zero."""
        return max(rate_of(group) for group in self.optimizer.param_groups)

    def labelled(self, samples: SampleIndices, most: int) -> NDArray[np.int64]:
        """The first `most` samples that have label tokens; others have no gradient."""
        kept: list[int] = []
        for sample in samples:
            if len(kept) == most:
                break
            labels = self.collator([self._row(sample)])["labels"]
            if int(LabelPositions.of(labels).counts.sum()):
                kept.append(int(sample))
        return np.array(kept, dtype=np.int64)

    def losses(self, samples: SampleIndices) -> NDArray[np.float64]:
        """(m,) mean losses of the samples' label tokens at the present weights, without dropout."""
        with evaluating(self.model), torch.no_grad():
            return self._losses(samples)

    @contextmanager
    def training(self) -> Iterator[Callable[[SampleIndices, float], None]]:
        """Train, and take it back at the end: yields a function that makes one step, on some samples and at a
        learning rate."""

        def step(samples: SampleIndices, rate: float) -> None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self._step(samples)

        with restoring(self.model, self.optimizer, self.seed), torch.inference_mode(False):
            yield step

    def lookahead(
        self, units: Sequence[SampleIndices], on: SampleIndices, only: NDArray[np.bool_] | None = None
    ) -> LookaheadLosses:
        """The losses of samples after one step of the optimizer on each unit, each from the present weights.

        A step is the run's own: token-mean loss, clipping, moments, weight decay, learning rate (that of the
        peak where a warm-up is about to begin with zero).

        Args:
            units: samples of each trial step.
            on: (m,) samples whose losses are compared.
            only: (units, m) which of them after which step. If unset, all.

        Raises:
            SignalError: when a unit has no label token.
        """
        places = np.asarray(on)
        with restoring(self.model, self.optimizer, self.seed) as restore, torch.inference_mode(False):
            before = self.losses(places)
            after = np.full((len(units), len(places)), np.nan)
            for number, unit in enumerate(units):
                # Each pair costs a forward pass, which units far apart in their gradients are not worth.
                compared = np.ones(len(places), dtype=bool) if only is None else only[number]
                self._step(unit)
                after[number, compared] = self.losses(places[compared])
                restore()
        return LookaheadLosses(before, after)

    def runs(
        self, runs: Sequence[Sequence[SampleIndices]], on: SampleIndices
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(m,) losses of samples now, and (runs, m) after several steps of the optimizer, each run from the
        present weights at learning rates that fall linearly to zero.

        Args:
            runs: of each its steps, and of each step its samples; a step is as in `lookahead`.
            on: (m,) samples whose losses are compared.

        Raises:
            SignalError: when a step's samples have no label token.
        """
        places = np.asarray(on)
        with restoring(self.model, self.optimizer, self.seed) as restore, torch.inference_mode(False):
            before, after = self.losses(places), np.empty((len(runs), len(places)))
            for number, steps in enumerate(runs):
                groups = self.optimizer.param_groups
                # Read before the first step of each run, which changes them; giving back restores them.
                rates = [rate_of(group) for group in groups]
                for done, samples in enumerate(steps):
                    for group, rate in zip(groups, rates, strict=True):
                        # As the annealing phase that such a run stands for: its rate falls linearly to zero.
                        group["lr"] = rate * (1 - done / len(steps))
                    self._step(samples)
                after[number] = self.losses(places)
                restore()
        return before, after

    def orders(self, nodes: Sequence[Sequence[SampleIndices]], on: SampleIndices) -> Orders:
        """The losses of samples after the steps of one node and then those of another, for every two nodes
        and in both orders, each from the present weights: n * n times a node's steps are made. Takes two
        copies of weights and optimizer.

        Args:
            nodes: of each its steps, and of each step its samples; a step is as in `lookahead`.
            on: (m,) samples whose losses are compared.

        Raises:
            SignalError: when a step's samples have no label token.
        """
        count, places = len(nodes), np.asarray(on)
        alone, both = np.empty((count, len(places))), np.full((count, count, len(places)), np.nan)
        with restoring(self.model, self.optimizer, self.seed) as to_present, torch.inference_mode(False):
            before = self.losses(places)
            for first, steps in enumerate(nodes):
                for samples in steps:
                    self._step(samples)
                alone[first] = self.losses(places)
                # A second copy, at the end of the first node's steps: n nodes then cost n^2 runs of steps
                # instead of 2 n^2.
                with restoring(self.model, self.optimizer) as to_first:
                    for then, others in enumerate(nodes):
                        if then == first:
                            continue
                        for samples in others:
                            self._step(samples)
                        both[first, then] = self.losses(places)
                        to_first()
                to_present()
        return Orders(before, alone, both)

    def sketches(self, units: Sequence[SampleIndices]) -> NDArray[np.float32]:
        """(n, SKETCH) of the units' gradients: their cosines tell which units are alike."""
        with evaluating(self.model), torch.inference_mode(False), torch.enable_grad():
            weights = self._weights()
            return np.stack([sketch(self._gradient(unit, weights)[1]).cpu().numpy() for unit in units])

    def bends(
        self, units: Sequence[SampleIndices], towards: SampleIndices, *, hessian: bool = True
    ) -> GradientProducts:
        """Products of gradients and of Hessians for every pair of units, with one Hessian-vector product for
        each (spec of D3, the commutator of two steps).

        To second order, training on u and then on v ends at a target's loss that is lower by `along[u, v] -
        along[v, u]` than training on v and then on u.

        Exact where the vectors of all units fit in `preconditioned.EXACT_BYTES`, else of their sketches.

        Args:
            units: samples of each.
            towards: samples whose loss is to fall in the end.
            hessian: False leaves `along` out, which costs most.

        Raises:
            SignalError: as in `lookahead`, or when nothing requires a gradient.
        """
        with evaluating(self.model), torch.inference_mode(False), torch.enable_grad():
            weights = self._weights()
            target, target_gradient = self._gradient(towards, weights)
            gradients: Any = ()
            if not Preconditioned.has_moments(self.optimizer, weights):
                # Before its first step Adam has no second moments; these gradients give it those that they
                # would leave.
                gradients = chain((self._gradient(unit, weights)[1] for unit in units), [target_gradient])
            way = Preconditioned.of(self.optimizer, weights, gradients)
            direction = way(target_gradient)
            vectors = Vectors(weights, 3 * len(units) + 1)
            target_vector = vectors.of(target_gradient)
            slopes, moves, turns, losses = [], [], [], []
            for unit in units:
                if hessian:
                    loss, gradient, turned = self._hessian_product(unit, weights, direction)
                    # H_u P g_E: one Hessian product per unit gives the commutators with all others as inner
                    # products.
                    turns.append(vectors.of(turned))
                else:
                    loss, gradient = self._gradient(unit, weights)
                losses.append(loss)
                slopes.append(vectors.of(gradient))
                moves.append(vectors.of(way(gradient)))
            return GradientProducts(
                along=products(turns, moves) if hessian else None,
                gains=products(slopes, moves),
                towards=products([target_vector], moves)[0],
                losses=np.array(losses),
                target_loss=target,
            )

    def plain_steps(
        self, units: Sequence[SampleIndices], length: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Token-mean losses of units (n,), and (n, n) after a step on each of them: a plain step of this
        length along its gradient, without the optimizer, without clipping, without dropout."""
        with (
            restoring(self.model, self.optimizer) as restore,
            evaluating(self.model),
            torch.inference_mode(False),
        ):
            weights = self._weights()
            before, after = self._unit_losses(units), np.empty((len(units), len(units)))
            for number, unit in enumerate(units):
                with torch.enable_grad():
                    _, gradients = self._gradient(unit, weights)
                with torch.no_grad():
                    for parameter, gradient in zip(weights, gradients, strict=True):
                        # In place, as `restore` copies back into these same tensors.
                        parameter.sub_(gradient, alpha=length)
                after[number] = self._unit_losses(units)
                restore()
            return before, after

    def diagonal_curvatures(
        self, units: Sequence[SampleIndices], on: SampleIndices, probes: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """(n,) g_u^T diag(h) g_u of every unit, with Hutchinson's estimate of the Hessian's diagonal,
        h = mean of v * (H v) over random signs v.

        Args:
            units: samples of each.
            on: samples whose mean loss has the Hessian.
            probes: number of vectors v.
            rng: draws them.
        """
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        with evaluating(self.model), torch.inference_mode(False), torch.enable_grad():
            weights = self._weights()
            single = torch.float32
            diagonal = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, single)) for p in weights]
            for _ in range(probes):
                # Drawn on the CPU, so that the estimate is the same on every device.
                signs = [
                    (torch.randint(2, p.shape, generator=generator) * 2 - 1).to(p.device, p.dtype)
                    for p in weights
                ]
                _, _, turned = self._hessian_product(on, weights, signs)
                for total, sign, row in zip(diagonal, signs, turned, strict=True):
                    total += (sign * row).to(total.dtype) / probes
            curvatures: list[float] = []
            for unit in units:
                _, gradient = self._gradient(unit, weights)
                # In float64, since float32 sums over millions of small squares lose digits.
                pairs = zip(diagonal, gradient, strict=True)
                curvatures.append(sum(float((h.double() * g.double() ** 2).sum()) for h, g in pairs))
            return np.array(curvatures)

    # ---- how -----------------------------------------------------------------------------------------------

    def _weights(self) -> list[nn.Parameter]:
        optimized = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        weights = [p for p in self.model.parameters() if p.requires_grad and id(p) in optimized]
        if not weights:
            raise SignalError("No parameter of the model requires a gradient; there is no step to measure.")
        return weights

    def _step(self, unit: SampleIndices) -> None:
        """One step of the optimizer, with dropout as in training."""
        weights = self._weights()
        check_checkpoints(self.model)
        # Before the first step of a run and after an evaluation the model is in evaluation mode; `kept` gives
        # its modes back.
        self.model.train()
        with torch.enable_grad():
            _, gradients = self._gradient(unit, weights)
        for parameter, gradient in zip(weights, gradients, strict=True):
            # The run's own optimizer makes the step, with moments, decay and clipping as training will.
            parameter.grad = gradient
        for group in self.optimizer.param_groups:
            # The first step of a warm-up would move nothing; given back with the rest.
            group["lr"] = group["lr"] or group.get("initial_lr", 0.0)
        if self.clip:
            nn.utils.clip_grad_norm_(weights, self.clip)
        self.optimizer.step()
        for parameter in weights:
            parameter.grad = None

    def _gradient(self, samples: SampleIndices, weights: list[nn.Parameter]) -> tuple[float, list[Tensor]]:
        """The token-mean loss and its gradient, which nobody accumulates."""
        total, gradients = 0.0, [torch.zeros_like(p) for p in weights]
        batches = list(self._batches(samples))
        tokens = sum(int(positions.counts.sum()) for _, positions in batches)
        self._check_tokens(samples, tokens)
        for inputs, positions in batches:
            loss = self._token_sum(inputs, positions) / tokens
            batch_gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for gradient, new in zip(gradients, batch_gradients, strict=True):
                if new is not None:
                    gradient += new
            total += float(loss.detach())
        return total, gradients

    def _hessian_product(
        self, samples: SampleIndices, weights: list[nn.Parameter], direction: list[Tensor]
    ) -> tuple[float, list[Tensor], list[Tensor]]:
        """Loss, gradient, and the Hessian times a direction."""
        attention = getattr(self.model.config, "_attn_implementation", None)
        if attention not in (None, "sdpa", "eager"):
            raise RecipeError(
                f"Hessian products need attention that can be differentiated twice, and this model has "
                f"{attention}; load it with attention: sdpa, or take an order that needs none."
            )
        total = 0.0
        gradients, turned = ([torch.zeros_like(p) for p in weights] for _ in range(2))
        batches = list(self._batches(samples))
        tokens = sum(int(positions.counts.sum()) for _, positions in batches)
        self._check_tokens(samples, tokens)
        for inputs, positions in batches:
            # The fused kernels of attention cannot be differentiated twice.
            with sdpa_kernel(SDPBackend.MATH):
                loss = self._token_sum(inputs, positions) / tokens
                batch_gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
                pairs = zip(batch_gradients, direction, strict=True)
                along = sum(
                    ((g * d).sum() for g, d in pairs if g is not None), torch.zeros((), device=self.device)
                )
                bent = torch.autograd.grad(along, weights, allow_unused=True)
            for sums, new in ((gradients, batch_gradients), (turned, bent)):
                for into, each in zip(sums, new, strict=True):
                    if each is not None:
                        into += each.detach()
            total += float(loss.detach())
        return total, gradients, turned

    def _losses(self, samples: SampleIndices) -> NDArray[np.float64]:
        if not len(samples):
            return np.zeros(0)
        batch_losses = [
            positions.mean_losses(self._logits(inputs, positions))
            for inputs, positions in self._batches(samples)
        ]
        return torch.cat(batch_losses).double().cpu().numpy()

    def _unit_losses(self, units: Sequence[SampleIndices]) -> NDArray[np.float64]:
        """(n,) token-mean losses."""
        losses: list[float] = []
        with torch.no_grad():
            for unit in units:
                batches = list(self._batches(unit))
                tokens = sum(int(positions.counts.sum()) for _, positions in batches)
                self._check_tokens(unit, tokens)
                losses.append(sum(float(self._token_sum(*batch)) for batch in batches) / tokens)
        return np.array(losses)

    def _token_sum(self, inputs: dict[str, Any], positions: LabelPositions) -> Tensor:
        logits = self._logits(inputs, positions)
        # Losses are compared after one small step; in bfloat16 the difference would be rounded away.
        return nn.functional.cross_entropy(wide(logits), positions.targets, reduction="sum")

    def _logits(self, inputs: dict[str, Any], positions: LabelPositions) -> Tensor:
        """(n, V) at the label positions."""
        with autocasting(self.device, self.autocast):
            return self.model(**inputs, use_cache=False).logits[:, :-1][positions.mask]

    def _batches(self, samples: SampleIndices) -> Iterator[tuple[dict[str, Any], LabelPositions]]:
        """As many samples at once as `batch_tokens` allows, in the order given."""
        rows = [self._row(sample) for sample in samples]
        start = 0
        while start < len(rows):
            stop, longest = start, 0
            while stop < len(rows):
                longest = max(longest, len(rows[stop]["input_ids"]))
                # In the order given, unlike a scoring run's: the samples of a step belong together.
                if stop > start and longest * (stop + 1 - start) > self.batch_tokens:
                    break
                stop += 1
            batch = {k: v.to(self.device) for k, v in self.collator(rows[start:stop]).items()}
            yield batch, LabelPositions.of(batch.pop("labels"))
            start = stop

    def _row(self, sample: int | np.integer[Any]) -> Any:
        # One numbering: samples of the target stand behind those of the data set.
        count = len(self.dataset)
        return self.dataset[int(sample)] if sample < count else self._target_samples[int(sample) - count]

    def _check_tokens(self, samples: SampleIndices, tokens: int) -> None:
        if not tokens:
            raise SignalError(f"The samples {list(samples)[:8]} have no label token; no step can be tried.")


def check_precision(autocast: torch.dtype | None) -> None:
    """Raise RecipeError for a precision in which trial steps are impossible."""
    if autocast == torch.float16:
        raise RecipeError(
            "Methods that make trial steps (d3, trial, less) cannot run under float16, whose loss scaling "
            "skips some of them; use bf16, or another method, such as balanced instead of d3."
        )


def check_checkpoints(model: nn.Module) -> None:
    """Raise RecipeError for gradient checkpoints that know `backward` alone, and not `autograd.grad`."""
    functions = (getattr(module, "_gradient_checkpointing_func", None) for module in model.modules())
    if any(getattr(each, "keywords", {}).get("use_reentrant") for each in functions if each):
        raise RecipeError(
            "Steps cannot be tried with reentrant gradient checkpointing; set use_reentrant: false in "
            "gradient_checkpointing_kwargs."
        )
