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
from gradwise.signals.given_back import settle
from gradwise.signals.scope import Matrix, Scope


class Preconditioner:
    """Row and column scales for every parameter of a scope.

    Args:
        moments: second moments v by parameter name, corrected for their bias, each of its parameter's shape.
        eps: as in Adam.
    """

    def __init__(self, moments: Mapping[str, Tensor], eps: float = 1e-8) -> None:
        self._moments = moments
        self._eps = eps
        self._scales: dict[Matrix, tuple[Tensor, Tensor]] = {}

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

    def matrix(self, matrix: Matrix) -> tuple[Tensor, Tensor]:
        """(R,) and (C,) scales."""
        if matrix not in self._scales:
            v = self._moments[matrix.name]
            v = (v if matrix.slice is None else v[matrix.slice]).to(accumulator(v.dtype))
            divisor = v.reshape(matrix.rows, matrix.columns).sqrt() + self._eps
            # d_ij ~ r_i c_j / m: the two sides each take sqrt(m), so that their product has the right size.
            root = divisor.mean().sqrt()
            self._scales[matrix] = root / divisor.mean(dim=1), root / divisor.mean(dim=0)
        return self._scales[matrix]

    def digest(self) -> str:
        """A hash of eps and all moments, by which a store recognises them."""
        state = hashlib.blake2b(repr(self._eps).encode(), digest_size=16)
        for name in sorted(self._moments):
            state.update(name.encode())
            state.update(self._moments[name].detach().cpu().double().numpy().tobytes())
        return state.hexdigest()

    def vector(self, name: str, like: Tensor) -> Tensor:
        """(d,) scale of a vector."""
        return 1 / (self._moments[name].to(like.dtype).flatten().sqrt() + self._eps)


def _moments(optimizer: torch.optim.Optimizer, scope: Scope) -> tuple[dict[str, Tensor], float]:
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SignalError(
            f"precondition takes an optimizer or a mapping of names to second moments; found {optimizer!r}."
        )
    settle(optimizer)
    names = {parameter: name for name, parameter in scope.parameters.items()}
    found: dict[str, Tensor] = {}
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
                    found[names[parameter]] = mean / (1 - beta**steps)
    return found, eps
