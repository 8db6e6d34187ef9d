"""DiReCT: the samples that finish a run, chosen against the curvature's spectrum."""

from gradwise.methods.direct.method import Direct

__all__ = ["Direct"]
