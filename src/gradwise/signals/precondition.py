"""Scales gradients by an optimizer's second moments, as the update would: 1 / (sqrt(v) + eps).

A sample's gradient is never formed, so the divisor d = sqrt(v) + eps of a matrix is used in its rank-one
form: with the means r_i of its rows, c_j of its columns and m of all, d_ij is taken as r_i c_j / m (the form
that Adafactor gives v itself, arXiv 1804.04235, eq. 4), and rows and columns are divided apart. It is exact
where d has rank one; how far it is from the full division in a trained model is measured in
`benchmarks/signals/precondition.py`. Vectors are divided exactly.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.errors import SignalError
from gradwise.numerics.projection import accumulator
from gradwise.signals.model_state import unwrapped, wait_for_state
from gradwise.signals.scope import Matrix, Scope
from gradwise.signals.shards import is_distributed, whole_tensor


class Preconditioner:
    """Row and column scales for every parameter of a scope.

    Args:
        moments: second moments v by parameter name, corrected for their bias, each of its parameter's shape.
        eps: as in Adam.
    """

    def __init__(self, moments: Mapping[str, Tensor], eps: float = 1e-8) -> None:
        self._moments = dict(moments)
        self._eps = eps
        self._scales: dict[Matrix, tuple[Tensor, Tensor]] = {}
        self._digest: str | None = None
        if any(is_distributed(each) for each in moments.values()):
            self._gather()

    @classmethod
    def of(cls, source: Any, scope: Scope) -> "Preconditioner":
        """From an Adam-like optimizer that has made a step, or from a mapping of names to second moments.

        Raises:
            SignalError: when a parameter in scope has none.
        """
        moments, eps = (source, 1e-8) if isinstance(source, Mapping) else _moments(source, scope)
        missing = [name for name in scope.parameters if name not in moments]
        if missing:
            raise SignalError(
                f"precondition: {len(missing)} of {len(scope.parameters)} parameters in scope have no second "
                f"moments (first: {missing[0]}); train a step with an Adam-like optimizer first, or narrow "
                "`parameters`."
            )
        for name, parameter in scope.parameters.items():
            if moments[name].shape != parameter.shape:
                raise SignalError(
                    f"precondition: the moments of {name} have shape {tuple(moments[name].shape)}, the "
                    f"parameter has {tuple(parameter.shape)}."
                )
        return cls(moments, eps)

    def _gather(self) -> None:
        """Compute the scales of matrices now, from moments that are sharded over ranks; a collective call.

        Moments are gathered one at a time, so no rank holds all of them.
        """
        state = self._new_digest()
        for name in sorted(self._moments):
            whole = whole_tensor(self._moments[name])
            _add_to(state, name, whole)
            if whole.ndim < 2:
                self._moments[name] = whole
                continue
            del self._moments[name]
            stack = whole if whole.ndim == 3 else whole.flatten(1)[None]
            for number, part in enumerate(stack):
                matrix = Matrix(name, number if whole.ndim == 3 else None, *part.shape)
                self._scales[matrix] = self._scales_of(matrix, whole)
        self._digest = state.hexdigest()

    def matrix(self, matrix: Matrix) -> tuple[Tensor, Tensor]:
        """(R,) and (C,) scales."""
        if matrix not in self._scales:
            self._scales[matrix] = self._scales_of(matrix, self._moments[matrix.name])
        return self._scales[matrix]

    def _scales_of(self, matrix: Matrix, v: Tensor) -> tuple[Tensor, Tensor]:
        v = (v if matrix.slice is None else v[matrix.slice]).to(accumulator(v.dtype))
        divisor = v.reshape(matrix.rows, matrix.columns).sqrt() + self._eps
        # d_ij ~ r_i c_j / m: the two sides each take sqrt(m), so that their product has the right size.
        # Means of d rather than of v, as Adafactor takes: cosines err alike (0.0018 and 0.0068 on two models,
        # 0.0250 and 0.0321 without scales), and lengths come out nearer to the full division (1.0002 and
        # 0.9964 of it, with means of v 0.9937 and 0.9957; docs/results/signals-precondition.md).
        root = divisor.mean().sqrt()
        return root / divisor.mean(dim=1), root / divisor.mean(dim=0)

    def digest(self) -> str:
        """A hash of eps and all moments, by which a store recognises them."""
        if self._digest is not None:
            return self._digest
        state = self._new_digest()
        for name in sorted(self._moments):
            _add_to(state, name, self._moments[name])
        return state.hexdigest()

    def _new_digest(self) -> Any:
        return hashlib.blake2b(repr(self._eps).encode(), digest_size=16)

    def vector(self, name: str, like: Tensor) -> Tensor:
        """(d,) scale of a vector."""
        return 1 / (self._moments[name].to(like.dtype).flatten().sqrt() + self._eps)


def _add_to(digest: Any, name: str, moments: Tensor) -> None:
    digest.update(name.encode())
    digest.update(moments.detach().cpu().double().numpy().tobytes())


def _moments(optimizer: torch.optim.Optimizer, scope: Scope) -> tuple[dict[str, Tensor], float]:
    optimizer = unwrapped(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SignalError(
            f"precondition takes an optimizer or a mapping of names to second moments; found {optimizer!r}."
        )
    wait_for_state(optimizer)
    names = {parameter: name for name, parameter in scope.parameters.items()}
    moments: dict[str, Tensor] = {}
    eps = 1e-8
    for group in optimizer.param_groups:
        eps = group.get("eps", eps)
        beta = group.get("betas", (0.9, 0.999))[1]
        for parameter in group["params"]:
            if isinstance(parameter, nn.Parameter) and parameter in names:
                state = optimizer.state.get(parameter, {})
                if "exp_avg_sq" in state:
                    steps = float(state.get("step", 1))
                    mean = state["exp_avg_sq"].to(parameter.device)
                    # Early in a run Adam's moments are far below their final size; its update corrects for
                    # that, and so must we.
                    moments[names[parameter]] = mean / (1 - beta**steps)
    return moments, eps
