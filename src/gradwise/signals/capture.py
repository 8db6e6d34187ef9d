"""Watches a forward pass for every use of a parameter in scope, and the backward pass for what comes back.

Functions are watched rather than modules: whatever calls `linear`, `addmm` or `embedding` with a weight in
scope (a Linear, GPT-2's Conv1D, an adapter, a router, one expert of a stack, a head tied to the embeddings)
is seen with the very tensors it multiplies. Weights themselves need no gradient; the first output that
depends on one becomes the root of the backward graph, so that nothing below it is ever back-propagated.

What is not seen (a parameter inside a compiled or custom kernel, a convolution) is found out by the rehearsal
(`gradwise.signals.rehearsal`), which compares every parameter with autograd.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gradwise.signals.rows import Rows
from gradwise.signals.scope import Found, Scope, Tracer
from gradwise.signals.sums import GradientSums


class Capture(TorchFunctionMode):
    """Active around one forward pass; `roots` are then what to differentiate with respect to.

    Args:
        scope: the parameters.
        sums: gets every sample's gradient as it appears.
        samples: B, samples in the batch.
        head_only: watch the output head and nothing else, not even an embedding tied to it.
    """

    def __init__(self, scope: Scope, sums: GradientSums, samples: int, *, head_only: bool = False) -> None:
        super().__init__()
        self._head_only = head_only
        self.roots: list[Tensor] = []
        self._sums = sums
        self._tracer = Tracer(scope)
        self._samples = samples
        self._owner: Tensor | None = None
        self._expert_rows: Callable[[int], Tensor] | None = None

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

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = HANDLERS.get(func)
        if handler is None or (self._head_only and self._owner is None):
            return func(*args, **(kwargs or {}))
        return handler(self, func, *args, **(kwargs or {}))

    # ---- uses, by function -------------------------------------------------------------------------------

    def _linear(self, func: Any, x: Tensor, weight: Any, bias: Any = None) -> Tensor:
        """x W^T + b."""
        return self._product(func(x, weight, bias), x, self._tracer.matrix(weight), bias, flipped=False)

    def _addmm(self, func: Any, bias: Any, x: Tensor, weight: Any, **scales: Any) -> Tensor:
        """b + x W."""
        out = func(bias, x, weight, **scales)
        return out if scales else self._product(out, x, self._tracer.matrix(weight), bias, flipped=True)

    def _matmul(self, func: Any, x: Any, weight: Any, **options: Any) -> Tensor:
        """x W."""
        return self._product(func(x, weight, **options), x, self._tracer.matrix(weight), None, flipped=True)

    def _product(self, out: Tensor, x: Tensor, found: Found | None, bias: Any, *, flipped: bool) -> Tensor:
        bias_name = self._tracer.name(bias)
        if found is None and bias_name is None:
            return out
        rows = self._rows(x, found)
        if rows is None:
            return out
        use = None
        if found is not None:
            # The parameter's rows are the outputs of x W^T and the inputs of x W.
            use = self._sums.product(found.matrix, x.detach(), rows, input_is_row=flipped != found.transposed)

        def arrived(gradient: Tensor) -> None:
            if use is not None:
                use(gradient)
            if bias_name is not None:
                self._sums.vector(bias_name, rows.summed(_wide(gradient)))

        return self._watched(out, arrived)

    def _embedding(self, func: Any, ids: Any, weight: Any = None, *rest: Any, **options: Any) -> Tensor:
        """Rows of a table."""
        if weight is None:
            weight = options.pop("weight")
        out = func(ids, weight, *rest, **options)
        found = self._tracer.matrix(weight)
        if found is None or self._owner is not None or ids.ndim != 2:
            return out
        padding = rest[0] if rest else options.get("padding_idx")
        if len(ids) != self._samples:
            if len(ids) != 1:
                return out
            # Positions looked up once for all samples: each gets its own copy, or their gradients would mix.
            ids, out = ids.expand(self._samples, -1), out.expand(self._samples, -1, -1)
        return self._watched(out, self._sums.lookup(found.matrix, ids, padding))

    def _scaled(self, func: Any, left: Any, right: Any, **options: Any) -> Tensor:
        """w * x, the gain of a norm, on either side."""
        out = func(left, right, **options)
        for gain, x in ((left, right), (right, left)):
            name = self._tracer.name(gain)
            if name is None or not isinstance(x, Tensor) or gain.ndim != 1 or x.shape[-1:] != gain.shape:
                continue
            if out.shape != x.shape or (rows := self._rows(x, None)) is None:
                continue
            return self._gained(out, name, x.detach(), rows)
        return out

    def _gained(self, out: Tensor, name: str, x: Tensor, rows: Rows) -> Tensor:
        return self._watched(out, lambda g: self._sums.vector(name, rows.summed(_wide(g) * _wide(x))))

    def _normed(
        self, func: Any, x: Tensor, shape: Any, weight: Any = None, *rest: Any, **options: Any
    ) -> Any:
        """Layer norm and RMS norm with their gain, and the layer norm's offset."""
        out = func(x, shape, weight, *rest, **options)
        layer_norm = func is functional.layer_norm
        bias = (rest[0] if rest else options.get("bias")) if layer_norm else None
        gain_name, bias_name = self._tracer.name(weight), self._tracer.name(bias)
        rows = self._rows(x, None)
        if rows is None or (gain_name is None and bias_name is None):
            return out
        after = rest[1:] if layer_norm else rest
        eps = after[0] if after else options.get("eps", 1e-5 if layer_norm else None)
        kept = x.detach()

        def arrived(gradient: Tensor) -> None:
            if gain_name is not None:
                bare = func(kept, shape, None, eps=eps)
                self._sums.vector(gain_name, rows.summed(_wide(gradient) * _wide(bare)))
            if bias_name is not None:
                self._sums.vector(bias_name, rows.summed(_wide(gradient)))

        return self._watched(out, arrived)

    def _cast(self, func: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """A copy in another type: what comes back to it is the parameter's own gradient."""
        out = func(tensor, *args, **kwargs)
        self._tracer.stands_for(out, tensor)
        return out

    def _shifted(self, func: Any, left: Any, right: Any, **options: Any) -> Any:
        """1 + w, as Gemma's norms have it: what comes back is w's own gradient."""
        out = func(left, right, **options)
        for tensor, other in ((left, right), (right, left)):
            if isinstance(other, int | float) and not options:
                self._tracer.stands_for(out, tensor)
        return out

    # ---- rows and roots ----------------------------------------------------------------------------------

    def _rows(self, x: Tensor, found: Found | None) -> Rows | None:
        """Whose rows those of x are, or None where that cannot be told."""
        count = x.shape[:-1].numel()
        if self._samples == 1:
            return Rows(1)
        if self._owner is not None:
            return Rows(self._samples, self._owner) if count == len(self._owner) else None
        if found is not None and found.matrix.slice is not None:
            if self._expert_rows is None:
                return None
            owner = self._expert_rows(found.matrix.slice)
            return Rows(self._samples, owner) if count == len(owner) else None
        in_batches = x.ndim >= 3 and len(x) == self._samples
        in_stretches = x.ndim == 2 and count % self._samples == 0
        return Rows(self._samples) if in_batches or in_stretches else None

    def _watched(self, out: Tensor, arrived: Callable[[Tensor], None]) -> Tensor:
        if not out.requires_grad:
            out = out.detach().requires_grad_()
            self.roots.append(out)
        out.register_hook(arrived)
        return out


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


_T: Any = torch.Tensor
HANDLERS: dict[Any, Callable[..., Any]] = {
    functional.linear: Capture._linear,
    functional.embedding: Capture._embedding,
    functional.layer_norm: Capture._normed,
    functional.rms_norm: Capture._normed,
    **dict.fromkeys((torch.addmm, _T.addmm), Capture._addmm),
    **dict.fromkeys((torch.matmul, torch.mm, _T.matmul, _T.mm, _T.__matmul__), Capture._matmul),
    **dict.fromkeys((torch.mul, torch.multiply, _T.mul, _T.__mul__, _T.__rmul__), Capture._scaled),
    **dict.fromkeys((torch.add, _T.add, _T.__add__, _T.__radd__), Capture._shifted),
    **dict.fromkeys((_T.float, _T.double, _T.half, _T.bfloat16, _T.to, _T.type, _T.type_as), Capture._cast),
}
