"""Precision of computations: whatever scores or times samples computes as training does."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_of(settings: object) -> torch.dtype | None:
    """The type that training computes in under autocast, or None if it computes in the weights' own type.

    Args:
        settings: TrainingArguments, or a recipe's `train.arguments`. Where they leave it open, `accelerate
            launch --mixed_precision` decides, as it does for the Trainer.
    """
    arguments = settings if isinstance(settings, Mapping) else vars(settings)
    precision = next(
        (name for name in _TYPES if arguments.get(name)), os.environ.get("ACCELERATE_MIXED_PRECISION")
    )
    return _TYPES.get(precision or "")


def autocast_here(device: torch.device) -> torch.dtype | None:
    """The type of the autocast context that surrounds the caller, or None outside of any."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@contextmanager
def autocasting(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """The context of a forward pass, as accelerate puts it around the model's.

    Every forward pass that a backward pass or a trial step follows needs a context of its own: autocast keeps
    its copies of weights until the outermost context ends, and they would be stale by then.

    Args:
        device: of the model.
        dtype: what to compute in; None for the weights' own type.
    """
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        yield
    torch.clear_autocast_cache()


def full_products() -> bool:
    """Whether products of float32 matrices are computed in float32 throughout, and not in TF32 or less."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return torch.get_float32_matmul_precision() == "highest"
    # torch 2.9 and later raise an error where the older function is asked for what the newer settings
    # changed, as the Trainer's `tf32` and `torch_compile` do on a GPU.
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    return all(matmul.fp32_precision in ("none", "ieee") for matmul in backends)


@contextmanager
def in_full_products() -> Iterator[None]:
    """Within it, products of float32 matrices are computed in float32 throughout."""
    matmul: Any = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        before = torch.get_float32_matmul_precision()  # of GPUs and CPUs
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    # oneDNN multiplies in bfloat16 where a CPU can and the setting allows it.
    backends: list[Any] = [matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    settings = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, setting in zip(backends, settings, strict=True):
            backend.fp32_precision = setting
