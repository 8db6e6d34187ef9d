"""Watches a forward pass for every use of a parameter in scope, and the backward pass for what comes back.

Functions are watched rather than modules: whatever calls `linear`, `addmm` or `embedding` with a weight in
scope (a Linear, GPT-2's Conv1D, an adapter, a router, one expert of a stack, a head tied to the embeddings)
is seen with the very tensors it multiplies. Weights themselves need no gradient; the first outputs that
depend on one are tied to an anchor, where the backward pass ends: nothing below is ever back-propagated.

What is not seen (a parameter inside a compiled or custom kernel, a convolution) is found by the engine check
(`gradwise.signals.engine_check`), which compares every parameter with autograd.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gradwise.signals.rows import SampleRows, wide
from gradwise.signals.scope import MatrixView, Scope, Tracer
from gradwise.signals.sums import GradientSums


class Capture(TorchFunctionMode):
    """Active around one forward pass; `anchor` is then what to differentiate with respect to.

    Handlers take their arguments under torch's own names, by which a model may give them.

    Args:
        scope: the parameters.
        sums: gets every sample's gradient as it appears.
        samples: B, samples in the batch.
        head_only: watch the output head and nothing else, not even an embedding tied to it.
    """

    def __init__(self, scope: Scope, sums: GradientSums, samples: int, *, head_only: bool = False) -> None:
        super().__init__()
        self._head_only = head_only
        self.anchor = torch.zeros((), requires_grad=True)
        self._sums = sums
        self._tracer = Tracer(scope)
        self._samples = samples
        self._owner: Tensor | None = None
        self._expert_rows: Callable[[int], Tensor] | None = None

    def gathered(self, sharded: Tensor, whole: Tensor) -> None:
        """In this forward pass, `whole` is used in the place of a parameter that is sharded over ranks."""
        self._tracer.stands_for(whole, sharded)

    @contextmanager
    def rows_owned_by(self, owner: Tensor) -> Iterator[None]:
        """Within it, activations have one row for each entry of `owner`, (n,) samples."""
        before, self._owner = self._owner, owner
        try:
            yield
        finally:
            self._owner = before

    def experts_begin(self, rows_of: Callable[[int], Tensor]) -> None:
        """From here on, uses of slice e of a stack have the rows `rows_of(e)`, (n,) samples."""
        self._expert_rows = rows_of

    def experts_end(self) -> None:
        """Back to ordinary rows."""
        self._expert_rows = None

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        handler = HANDLERS.get(func)
        passed_over = self._head_only and self._owner is None
        # What runs without gradients gets none from autograd either.
        # Within `head_only` only the head runs with an owner of rows; a tied embedding is looked up without
        # one.
        if handler is None or passed_over or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        return handler(self, func, *args, **(kwargs or {}))

    # ---- uses, by function -------------------------------------------------------------------------------

    def _linear(
        self, func: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """x W^T + b."""
        view = self._tracer.matrix(weight)
        return self._product(func(input, weight, bias), input, view, bias, flipped=False)

    def _addmm(
        self, func: Callable[..., Any], input: Tensor, mat1: Tensor, mat2: Tensor, **scales: Any
    ) -> Tensor:
        """b + x W."""
        out = func(input, mat1, mat2, **scales)
        # alpha and beta would scale the gradient. Such a use is not captured; the engine check finds it.
        return out if scales else self._product(out, mat1, self._tracer.matrix(mat2), input, flipped=True)

    def _matmul(self, func: Callable[..., Any], input: Tensor, other: Tensor, **options: Any) -> Tensor:
        """x W, or W x^T as Mamba has it."""
        out = func(input, other, **options)
        left = self._tracer.matrix(input)
        # W x^T has samples in its columns. Its transpose is x W^T, so that gradients are turned as they
        # arrive.
        if left is not None and isinstance(other, Tensor) and other.ndim >= 2:
            return self._product(out, other.mT, left, None, flipped=False, turned=True)
        return self._product(out, input, self._tracer.matrix(other), None, flipped=True)

    def _mm(self, func: Callable[..., Any], input: Tensor, mat2: Tensor, **options: Any) -> Tensor:
        """x W."""
        return self._matmul(func, input, mat2, **options)

    def _product(
        self,
        out: Tensor,
        x: Tensor,
        view: MatrixView | None,
        bias: Any,
        *,
        flipped: bool,
        turned: bool = False,
    ) -> Tensor:
        """A matrix multiplies x; `turned` where the result has rows and columns exchanged."""
        bias_name = self._tracer.name(bias)
        if view is None and bias_name is None:
            return out
        rows = self._rows(x, view)
        if rows is None:
            return self._lost(out, bias_name if view is None else view.matrix.name)
        use = None
        if view is not None:
            # The parameter's rows are the outputs of x W^T and the inputs of x W.
            use = self._sums.product(view.matrix, x.detach(), rows, input_is_row=flipped != view.transposed)

        def arrived(gradient: Tensor) -> None:
            if use is not None:
                use(gradient.mT if turned else gradient)
            if bias_name is not None:
                self._sums.vector(bias_name, rows.summed(wide(gradient)))

        return self._watched(out, arrived)

    def _embedding(
        self, func: Callable[..., Any], input: Any, weight: Any, *rest: Any, **options: Any
    ) -> Tensor:
        """Rows of a table."""
        ids, out = input, func(input, weight, *rest, **options)
        view = self._tracer.matrix(weight)
        if view is None:
            return out
        # An adapter of embeddings looks columns up, in a transposed weight.
        if self._owner is not None or ids.ndim != 2 or view.transposed:
            return self._lost(out, view.matrix.name)
        padding = rest[0] if rest else options.get("padding_idx")
        if len(ids) != self._samples:
            if len(ids) != 1:
                return self._lost(out, view.matrix.name)
            # Positions looked up once for all samples: each gets its own copy, or their gradients would mix.
            ids, out = ids.expand(self._samples, -1), out.expand(self._samples, -1, -1)
        return self._watched(out, self._sums.lookup(view.matrix, ids, padding))

    def _scaled(self, func: Callable[..., Any], input: Any, other: Any, **options: Any) -> Tensor:
        """w * x, the gain of a norm, on either side."""
        out = func(input, other, **options)
        for gain, x in ((input, other), (other, input)):
            name = self._tracer.name(gain)
            if name is None or not isinstance(x, Tensor) or gain.ndim != 1 or x.shape[-1:] != gain.shape:
                continue
            if out.shape != x.shape or (rows := self._rows(x, None)) is None:
                return self._lost(out, name)
            return self._gained(out, name, x.detach(), rows)
        return out

    def _gained(self, out: Tensor, name: str, x: Tensor, rows: SampleRows) -> Tensor:
        return self._watched(out, lambda g: self._sums.vector(name, rows.summed(wide(g) * wide(x))))

    def _normed(
        self,
        func: Callable[..., Any],
        input: Tensor,
        normalized_shape: Any,
        weight: Any = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Layer norm and RMS norm with their gain, and the layer norm's offset."""
        out = func(input, normalized_shape, weight, *rest, **options)
        layer_norm = func is functional.layer_norm
        bias = (rest[0] if rest else options.get("bias")) if layer_norm else None
        gain_name, bias_name = self._tracer.name(weight), self._tracer.name(bias)
        if gain_name is None and bias_name is None:
            return out
        rows = self._rows(input, None)
        if rows is None or len(normalized_shape) != 1:
            return self._lost(out, gain_name or bias_name)
        after = rest[1:] if layer_norm else rest
        eps = after[0] if after else options.get("eps", 1e-5 if layer_norm else None)
        # Only the input is kept. The norm without its gain is computed again when the gradient arrives,
        # rather than held through the whole backward pass.
        detached = input.detach()

        def arrived(gradient: Tensor) -> None:
            if gain_name is not None:
                bare = func(detached, normalized_shape, None, eps=eps)
                self._sums.vector(gain_name, rows.summed(wide(gradient) * wide(bare)))
            if bias_name is not None:
                self._sums.vector(bias_name, rows.summed(wide(gradient)))

        return self._watched(out, arrived)

    def _cast(self, func: Callable[..., Any], tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """A copy in another type: what comes back to it is the parameter's own gradient."""
        out = func(tensor, *args, **kwargs)
        self._tracer.stands_for(out, tensor)
        return out

    def _shifted(self, func: Callable[..., Any], input: Any, other: Any, **options: Any) -> Any:
        """1 + w, as Gemma's norms have it: what comes back is w's own gradient."""
        out = func(input, other, **options)
        for tensor, number in ((input, other), (other, input)):
            if isinstance(number, int | float) and not options:
                self._tracer.stands_for(out, tensor)
        return out

    def _kept_from_learning(
        self, func: Callable[..., Any], tensor: Tensor, *requires_grad: object, **options: object
    ) -> Tensor:
        """A hook that makes the embeddings require a gradient (`enable_input_require_grads`) would hide which
        outputs are the first that depend on the scope. FSDP2 sets the same of parameters that it gathers."""
        return func(tensor, *requires_grad, **options) if isinstance(tensor, nn.Parameter) else tensor

    # ---- rows and the anchor ------------------------------------------------------------------------------

    def _rows(self, x: Tensor, view: MatrixView | None) -> SampleRows | None:
        """Whose rows those of x are, or None where that is unknown."""
        count = x.shape[:-1].numel()
        if self._samples == 1:
            return SampleRows(1)
        if self._owner is not None:
            return SampleRows(self._samples, self._owner) if count == len(self._owner) else None
        if view is not None and view.matrix.slice is not None:
            # An expert gets rows of any samples, so that their number does not show whose they are.
            if self._expert_rows is None:
                return None
            owner = self._expert_rows(view.matrix.slice)
            return SampleRows(self._samples, owner) if count == len(owner) else None
        # Two ways in which models lay out a batch: (B, T, d), or (B T, d) with each sample's rows in one
        # stretch.
        in_batches = x.ndim >= 3 and len(x) == self._samples
        in_stretches = x.ndim == 2 and count % self._samples == 0
        return SampleRows(self._samples) if in_batches or in_stretches else None

    def _watched(self, out: Tensor, arrived: Callable[[Tensor], None]) -> Tensor:
        if not out.requires_grad:
            out = _Anchored.apply(self.anchor, out)
        # A hook on the output, since the weight itself needs no gradient: the weight-gradient products, a
        # third of a training step, are never made.
        out.register_hook(arrived)
        return out

    def _lost(self, out: Tensor, name: str | None) -> Tensor:
        """A use whose rows cannot be assigned to samples; noted if a gradient comes back to it."""
        return self._watched(out, lambda _: self._sums.lost.add(name or ""))


class _Anchored(torch.autograd.Function):
    """Joins a tensor to the backward graph. No leaf of it: an operation in place may follow."""

    @staticmethod
    def forward(_: object, __: Tensor, out: Tensor) -> Tensor:  # type: ignore[override]
        return out.detach()

    @staticmethod
    def backward(_: object, __: Tensor) -> tuple[None, None]:  # type: ignore[override]
        return None, None


_T: Any = torch.Tensor
HANDLERS: dict[Any, Callable[..., Any]] = {
    functional.linear: Capture._linear,
    functional.embedding: Capture._embedding,
    functional.layer_norm: Capture._normed,
    functional.rms_norm: Capture._normed,
    **dict.fromkeys((torch.addmm, _T.addmm), Capture._addmm),
    **dict.fromkeys((torch.matmul, _T.matmul, _T.__matmul__), Capture._matmul),
    **dict.fromkeys((torch.mm, _T.mm), Capture._mm),
    **dict.fromkeys((torch.mul, torch.multiply, _T.mul, _T.__mul__, _T.__rmul__), Capture._scaled),
    **dict.fromkeys((torch.add, _T.add, _T.__add__, _T.__radd__), Capture._shifted),
    **dict.fromkeys((_T.float, _T.double, _T.half, _T.bfloat16, _T.to, _T.type, _T.type_as), Capture._cast),
    _T.requires_grad_: Capture._kept_from_learning,
}
