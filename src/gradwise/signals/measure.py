"""Measures one batch: one forward pass, at most one backward pass, every sample's quantities apart.

Shapes: B samples of up to T tokens, n label tokens in all, V the vocabulary, h the width of the model.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradwise.errors import RecipeError, SignalError
from gradwise.precision import autocasting
from gradwise.signals.capture import Capture
from gradwise.signals.head import Head, LabelPositions
from gradwise.signals.plain_head import AtHead, at_head
from gradwise.signals.rank_schedule import RankSchedule, RunKind
from gradwise.signals.request import SignalRequest, middle_blocks
from gradwise.signals.scope import Scope
from gradwise.signals.shards import Shards, device_of, gathered_in
from gradwise.signals.sums import GradientRequest, GradientSums
from gradwise.structure import block_list

Batch = dict[str, Any]


class InseparableError(SignalError):
    """Rows of an activation that cannot be assigned to samples."""


@dataclass
class Measured:
    """Quantities of one batch, rows in the batch's order."""

    values: dict[str, Tensor] = field(default_factory=dict)
    """(B, ...) by name of the quantity, in float32 or float64."""

    lost: tuple[str, ...] = ()
    """Parameters with a use whose rows could not be assigned to samples."""

    by_parameter: dict[str, Tensor] = field(default_factory=dict)
    """(B,) squared norm of each parameter's gradient, where that was asked for."""

    def replaced(self, wrong_B: Tensor, other: "Measured") -> "Measured":
        """These quantities with the rows marked as wrong taken from another measurement."""
        return Measured(
            _rows_replaced(self.values, other.values, wrong_B),
            self.lost,
            _rows_replaced(self.by_parameter, other.by_parameter, wrong_B),
        )


class Measurer:
    """Measures batches with one model.

    Args:
        model: prepared for it (`gradwise.signals.model_state`).
        signal_request: what to measure.
        gradient_request: parameters whose gradients are wanted; None for no gradients.
        unseen: parameters whose use cannot be watched; batches must then have one sample, and autograd gives
            these parameters' gradients.
        autocast: what forward passes compute in; None for the weights' own type.
        rank_schedule: keeps ranks that share a sharded model in step; None for a model that is whole.
        plain_head: whether logits are the head's product and no more (`Head.returns_product`), so that they
            can be made and used in pieces.
    """

    def __init__(
        self,
        model: nn.Module,
        signal_request: SignalRequest,
        gradient_request: GradientRequest | None,
        unseen: tuple[str, ...] = (),
        autocast: torch.dtype | None = None,
        rank_schedule: RankSchedule | None = None,
        *,
        plain_head: bool = False,
    ) -> None:
        self.model = model
        self.signal_request = signal_request
        self.gradient_request = gradient_request
        self.unseen = unseen
        self.shards = Shards(model)
        self.autocast = autocast
        self.rank_schedule = rank_schedule
        self.head = Head(model)
        # The head's own gradients, by sample, need its products to be seen.
        head_parameters = {id(parameter) for parameter in self.head.module.parameters()}
        scope = () if gradient_request is None else gradient_request.scope.parameters.values()
        self._in_pieces = plain_head and head_parameters.isdisjoint(id(parameter) for parameter in scope)
        self._middle_block = middle_block(model) if "middle_embedding" in signal_request else None
        # Ranks that share a model gather its blocks in step, to the end of every forward pass.
        stops = signal_request.middle_alone and rank_schedule is None
        self._middle_alone = stops and self._middle_block is not None
        self.device = device_of(model)
        self.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self._computed = (self.dtype, autocast, gathered_in(model))

    def __call__(self, batch: Batch, *, apart: bool = False) -> Measured:
        """Measure a padded batch with "labels"; with `apart`, each parameter's share of the norm as well."""
        batch, positions = self._placed(batch)
        if torch.float16 in self._computed and self.gradient_request is not None:
            return self._without_overflow(batch, positions, apart)
        return self._measure(batch, positions, 1.0, apart)

    def once(self, batch: Batch) -> Measured:
        """The same in exactly one run, whatever overflows."""
        return self._measure(*self._placed(batch), 1.0, False)

    def _placed(self, batch: Batch) -> tuple[Batch, LabelPositions]:
        # Without labels in the batch, so that the model computes no loss of its own: one mean over all
        # samples.
        placed = {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        return placed, LabelPositions.of(placed.pop("labels"))

    def _without_overflow(self, batch: Batch, positions: LabelPositions, apart: bool) -> Measured:
        """Float16 gradients underflow unless scaled up; samples where that overflows are scaled less."""
        measured = self._measure(dict(batch), positions, 2.0**12, apart)
        for scale in (2.0**4, 1.0):
            # By row: when a whole float16 batch was judged at once, one sample with a NaN disabled the
            # scaling of all the others (docs/log.md).
            wrong_B = ~torch.stack([_finite(value) for value in measured.values.values()]).all(dim=0)
            # Where the loss is not finite, no scale helps.
            if not (wrong_B & _finite(measured.values["loss"])).any():
                return measured
            measured = measured.replaced(wrong_B, self._measure(dict(batch), positions, scale, apart))
        return measured

    def _measure(self, batch: Batch, positions: LabelPositions, scale: float, apart: bool) -> Measured:
        if self._middle_alone:
            return self._up_to_middle_block(batch, positions)
        run = self._head_in_pieces if self._in_pieces else self._head_at_once
        return run(batch, positions, scale, apart)

    def _up_to_middle_block(self, batch: Batch, positions: LabelPositions) -> Measured:
        """A forward pass that ends where the middle embedding is there; no loss."""
        computing = autocasting(self.device, self.autocast)
        with self._run(None, []) as (_, hidden), suppress(_EndedEarlyError), computing:
            self.head.logits(batch, positions, (), hidden)
        embedding = positions.pooled(hidden.middle, self.signal_request.pooling, batch)
        return Measured({"middle_embedding": embedding})

    def _head_in_pieces(self, batch: Batch, positions: LabelPositions, scale: float, apart: bool) -> Measured:
        """One forward pass up to the head, whose part is computed a few rows at a time, and one backward pass
        from there where gradients are wanted."""
        gradients = self._new_sums(positions.samples, apart)
        captures = self._captures(positions, gradients)

        def compute(hidden_nh: Tensor) -> AtHead:
            return at_head(
                cast(nn.Linear, self.head.module),
                hidden_nh,
                positions,
                self.autocast,
                scale=scale,
                gradient=gradients is not None,
                norms="head_norm" in self.signal_request,
            )

        with self._run(gradients, captures) as (unseen, hidden):
            with self._watched(captures, unseen, positions):
                hidden_nh, logits, there = self.head.in_pieces(batch, positions, hidden, compute)
            if there.gradient_nh is not None:
                start, returned = [hidden_nh], [there.gradient_nh]
                if self.rank_schedule is not None:
                    # FSDP gathers what it needs for a backward pass when one comes to the model's output.
                    start, returned = [logits, *start], [torch.zeros_like(logits), *returned]
                self._backward(start, captures, unseen, gradients, returned)
        measured = self._forward_values(there.losses_B, hidden, positions, batch)
        self._read(measured, gradients, scale)
        if there.squares_B is not None:
            measured.values["head_norm"] = there.squares_B.sqrt()
        return measured

    def _head_at_once(self, batch: Batch, positions: LabelPositions, scale: float, apart: bool) -> Measured:
        """One forward pass of the whole model, and one backward pass where gradients are wanted."""
        gradients = self._new_sums(positions.samples, apart)
        head_only = self._new_head_sums(positions.samples)
        captures = self._captures(positions, gradients) + self._captures(positions, head_only, head_only=True)
        with self._run(gradients, captures) as (unseen, hidden):
            # No name is kept for the logits: large as they are, they go before the backward pass.
            with self._watched(captures, unseen, positions):
                losses_B = positions.mean_losses(self.head.logits(batch, positions, captures, hidden))
            self._backward([losses_B.sum() * scale], captures, unseen, gradients)
        measured = self._forward_values(losses_B.detach(), hidden, positions, batch)
        self._read(measured, gradients, scale)
        if head_only is not None:
            head_only.finish()
            assert head_only.squares is not None
            measured.values["head_norm"] = head_only.squares.sqrt() / scale
        return measured

    @contextmanager
    def _run(
        self, gradients: GradientSums | None, captures: list[Capture]
    ) -> "Iterator[tuple[dict[str, Tensor], HiddenStates]]":
        """Around a forward and a backward pass: the parameters that autograd follows, and the hidden states
        that embeddings are taken from."""
        kind = RunKind(
            gradients is not None, "head_norm" in self.signal_request, self.unseen if gradients else ()
        )
        grad_enabled = torch.set_grad_enabled(bool(captures))
        with self._shared_run(kind), grad_enabled, self._unseen_learning() as unseen, ExitStack() as hooks:
            yield unseen, self._hidden_states(hooks)

    @contextmanager
    def _watched(
        self, captures: list[Capture], unseen: dict[str, Tensor], positions: LabelPositions
    ) -> Iterator[None]:
        """Around a forward pass."""
        with ExitStack() as watching:
            if captures:
                watching.enter_context(self._gathering_watched(captures, unseen))
            for capture in captures:
                watching.enter_context(capture)
                watching.enter_context(experts_watched(self.model, capture, positions))
            watching.enter_context(autocasting(self.device, self.autocast))
            yield

    def _captures(
        self, positions: LabelPositions, sums: GradientSums | None, *, head_only: bool = False
    ) -> list[Capture]:
        if sums is None:
            return []
        parameters = sums.request.scope.parameters
        scope = Scope({name: p for name, p in parameters.items() if name not in self.unseen})
        return [Capture(scope, sums, positions.samples, head_only=head_only)]

    def _forward_values(
        self, losses_B: Tensor, hidden: "HiddenStates", positions: LabelPositions, batch: Batch
    ) -> Measured:
        measured = Measured({"loss": losses_B})
        for name, state in (("embedding", "state"), ("middle_embedding", "middle")):
            if name in self.signal_request:
                state_BTh = getattr(hidden, state)
                measured.values[name] = positions.pooled(state_BTh, self.signal_request.pooling, batch)
        return measured

    def _shared_run(self, kind: RunKind) -> AbstractContextManager[None]:
        return nullcontext() if self.rank_schedule is None else self.rank_schedule.shared_run(kind)

    @contextmanager
    def _gathering_watched(self, captures: list[Capture], unseen: dict[str, Tensor]) -> Iterator[None]:
        """Whole parameters of a sharded model take the places of its own: captures follow them, and `unseen`
        names them."""
        names = {id(parameter): name for name, parameter in unseen.items()}

        def gathered(sharded: Tensor, whole: Tensor) -> None:
            for capture in captures:
                capture.gathered(sharded, whole)
            if id(sharded) in names:
                unseen[names[id(sharded)]] = whole

        with self.shards.watched(gathered):
            yield

    def _new_sums(self, samples: int, apart: bool) -> GradientSums | None:
        if self.gradient_request is None or not self.signal_request.gradients:
            return None
        if self.unseen and samples > 1:
            raise AssertionError("with unseen parameters a batch is one sample")
        sums = GradientSums(self.gradient_request, samples, self.device, self.dtype)
        if apart:
            sums.watch_parameters()
        return sums

    def _new_head_sums(self, samples: int) -> GradientSums | None:
        if "head_norm" not in self.signal_request:
            return None
        gradient_request = GradientRequest(Scope({"head": self.head.weight}), norms=True)
        return GradientSums(gradient_request, samples, self.device, self.dtype)

    def _hidden_states(self, stack: ExitStack) -> "HiddenStates":
        hidden, request = HiddenStates(), self.signal_request
        # A middle block may be missing, or hand on something else.
        hidden.from_head = "middle_embedding" in request or ("embedding" in request and request.layer is None)
        if "embedding" in request and request.layer is not None:
            stack.enter_context(hidden.taken_after(self.model, request.layer))
        if self._middle_block is not None:
            stack.enter_context(hidden.taken_middle(self._middle_block, then_stop=self._middle_alone))
        return hidden

    @contextmanager
    def _unseen_learning(self) -> Iterator[dict[str, Tensor]]:
        unseen = (
            {}
            if self.gradient_request is None
            else {name: self.gradient_request.scope.parameters[name] for name in self.unseen}
        )
        for parameter in unseen.values():
            parameter.requires_grad_(True)
        try:
            yield dict(unseen)
        finally:
            for parameter in unseen.values():
                parameter.requires_grad_(False)

    @staticmethod
    def _backward(
        start: list[Tensor],
        captures: list[Capture],
        unseen: dict[str, Tensor],
        sums: GradientSums | None,
        returned: list[Tensor] | None = None,
    ) -> None:
        # Nothing of the scope was used, as with a frozen model: all gradients are zero.
        if not start[-1].requires_grad:
            return
        targets = [*(capture.anchor for capture in captures), *unseen.values()]
        # With inputs named, nothing is accumulated into anybody's .grad.
        gradients = torch.autograd.grad(start, targets, returned, allow_unused=True)
        for name, gradient in zip(unseen, gradients[len(captures) :], strict=True):
            if gradient is not None and sums is not None:
                sums.parameter(name, gradient)

    def _read(self, measured: Measured, sums: GradientSums | None, scale: float) -> None:
        if sums is None:
            return
        sums.finish()
        if sums.lost and sums.by_name is None:
            raise InseparableError(
                f"{type(self.model).__name__}: at this length the rows of {min(sums.lost)} cannot be "
                "assigned to samples; measure one sample at a time (batch_tokens=1), or leave it out "
                "with `parameters`."
            )
        if sums.squares is not None and "grad_norm" in self.signal_request:
            measured.values["grad_norm"] = sums.squares.sqrt() / scale
        if sums.projected is not None:
            measured.values["grad"] = sums.projected / scale
        if sums.whole is not None:
            measured.values["grad"] = sums.whole / scale
        if sums.by_name is not None:
            measured.lost = tuple(sorted(sums.lost))
            measured.by_parameter = {name: square / scale**2 for name, square in sums.by_name.items()}


class _EndedEarlyError(Exception):
    """Ends a forward pass where all that is wanted is there."""


class HiddenStates:
    """The hidden states that embeddings are taken from, once the forward pass has come by."""

    def __init__(self) -> None:
        self.from_head = False
        """Whether the states that reach the head are to be kept."""
        self._at_head: Tensor | None = None
        self._after_layer: Tensor | None = None
        self._after_middle: Tensor | None = None
        self._has_layer = False

    @property
    def state(self) -> Tensor:
        """(B, T, h) for "embedding"."""
        return self._there(self._after_layer if self._has_layer else self._at_head)

    @property
    def middle(self) -> Tensor:
        """(B, T, h) for "middle_embedding"; where no block handed on any, those that reached the head."""
        return self._there(self._at_head if self._after_middle is None else self._after_middle)

    @staticmethod
    def _there(state_BTh: Tensor | None) -> Tensor:
        if state_BTh is None:
            raise SignalError("The model's hidden states never came by; give another `layer`, or none.")
        return state_BTh

    def keep(self, state_BTh: Tensor) -> None:
        """Called with the states that reach the head."""
        # Detached, or the whole graph of the forward pass would live as long as the embedding.
        self._at_head = state_BTh.detach()

    @contextmanager
    def taken_after(self, model: nn.Module, layer: int) -> Iterator[None]:
        """Keep the states after a block, counted from 0 or, negative, from the end."""
        self._has_layer = True
        blocks = block_list(model)[1]
        if not -len(blocks) <= layer < len(blocks):
            raise SignalError(f"layer is {layer}, but the model has {len(blocks)} blocks.")

        def keep(state_BTh: Tensor) -> None:
            self._after_layer = state_BTh.detach()

        with after_block(blocks[layer], keep):
            yield

    @contextmanager
    def taken_middle(self, block: nn.Module, *, then_stop: bool) -> Iterator[None]:
        """Keep the states after a block (`middle_block`); with `then_stop` the forward pass ends there."""

        def keep(state_BTh: Tensor) -> None:
            if not isinstance(state_BTh, Tensor) or state_BTh.ndim != 3:
                return
            # Of blocks that run several times the first: a forward pass that stops gets no further.
            if self._after_middle is None:
                self._after_middle = state_BTh.detach()
            if then_stop:
                raise _EndedEarlyError

        with after_block(block, keep):
            yield


def middle_block(model: nn.Module) -> nn.Module | None:
    """The last block of the first half, rounded up; None for a model whose blocks are not found."""
    try:
        blocks = block_list(model)[1]
    except RecipeError:
        return None
    return blocks[middle_blocks(len(blocks)) - 1]


@contextmanager
def after_block(block: nn.Module, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `keep` with what the block hands on."""

    def hook(_: object, __: object, out: Any) -> None:
        keep(out[0] if isinstance(out, tuple) else out)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def experts_watched(model: nn.Module, capture: Capture, positions: LabelPositions) -> Iterator[None]:
    """Tell the capture, at each stack of experts, which samples each expert's rows are of."""
    handles = []
    for module in model.modules():
        if any(p.ndim == 3 for p in module.parameters(recurse=False)):
            handles.append(
                module.register_forward_pre_hook(_experts_hook(capture, positions), with_kwargs=True)
            )
            handles.append(module.register_forward_hook(lambda *_: capture.experts_end()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _experts_hook(capture: Capture, positions: LabelPositions) -> Callable[..., None]:
    def begin(_: Any, args: Any, kwargs: Any) -> None:
        chosen = args[1] if len(args) > 1 else kwargs.get("top_k_index")
        if not isinstance(chosen, Tensor) or chosen.ndim != 2 or len(chosen) % positions.samples:
            return
        # Tokens come sample after sample, equally many of each, so that a token's number tells its sample.
        length = len(chosen) // positions.samples

        def rows_of(expert: int) -> Tensor:
            # transformers' loop is over the place among the chosen first, then over tokens.
            return (chosen == expert).T.nonzero()[:, 1] // length

        capture.experts_begin(rows_of)

    return begin


def _finite(value: Tensor) -> Tensor:
    """(B, ...) -> (B,) whether all of a row is."""
    return value.isfinite().reshape(len(value), -1).all(dim=1)


def _rows_replaced(
    first: dict[str, Tensor], second: dict[str, Tensor], chosen_B: Tensor
) -> dict[str, Tensor]:
    return {
        name: torch.where(chosen_B.reshape(-1, *[1] * (value.ndim - 1)), second[name], value)
        for name, value in first.items()
    }
