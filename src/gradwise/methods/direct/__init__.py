"""DiReCT: the samples of the annealing phase, chosen against the curvature's spectrum."""

from gradwise.methods.direct.method import Direct

__all__ = ["Direct"]
