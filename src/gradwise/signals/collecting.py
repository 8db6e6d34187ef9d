"""`gw.collect`: every sample's quantities at a model's present weights."""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from gradwise.data.texts import Texts
from gradwise.errors import SignalError
from gradwise.precision import autocast_here
from gradwise.ranks import rank
from gradwise.signals.model_state import prepared, uncompiled
from gradwise.signals.quantities import Signals
from gradwise.signals.request import DEFAULT_QUANTITIES, Quantity, SignalRequest
from gradwise.signals.scope import resolve
from gradwise.signals.scoring_run import Collate, ScoringRun
from gradwise.signals.shards import device_of, reshard
from gradwise.text import shown


def collect(
    model: nn.Module,
    dataset: Any,
    collator: Collate | None = None,
    want: str | Sequence[Quantity] | Any = DEFAULT_QUANTITIES,
    parameters: str | Sequence[str] = "blocks",
    grad_dim: int | None = 1024,
    precondition: Any = None,
    batch_tokens: int = 4096,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    *,
    pooling: str = "labels",
    layer: int | None = None,
    grad_dtype: str = "float32",
    autocast: torch.dtype | None = None,
    tell: Callable[[str], None] | None = None,
) -> Signals:
    """Measure every sample at the model's present weights, in one scoring run.

    With label tokens L_i, a sample's mean loss is l_i = (1/|L_i|) sum over L_i of the cross entropy.
    Gradients are of l_i, so none depends on what its sample was batched with. Without dropout and auxiliary
    losses. The model is given back as it was found.

    Under torch.distributed each rank does its share of the batches, and all return the same. So it is with a
    model that FSDP2 (`fully_shard`) shards: each rank gathers one block of it at a time, all ranks make the
    same number of forward/backward passes, and the signals are those of the whole model. Its parameters are
    sharded when this returns.

    Args:
        model: a causal language model, whole in this process or sharded by FSDP2.
        dataset: anything indexable of {"input_ids": [...], "labels": [...]}; labels of -100 do not count.
        collator: makes a padded batch with "labels" out of samples; padding on the right by default.
        want: some of "loss", "embedding", "grad_norm", "grad", "head_norm" and "middle_embedding", or the
            methods that need them, such as `gw.Grace(fraction=0.1)`. Only "grad" and "grad_norm" need a
            backward pass; "head_norm" needs that of the head alone. With "middle_embedding" alone the forward
            pass ends after half of the blocks, and no loss is checked.
        parameters: what gradients are taken over: "blocks" (linear weights of the transformer blocks, or the
            adapters in them), "all", or patterns that names of parameters match.
        grad_dim: k, length of a projected gradient; None for the unprojected one, of the scope's size.
        precondition: an Adam-like optimizer, or second moments by parameter name: gradients and their norms
            are then of g / (sqrt(v) + eps), see `gradwise.signals.precondition`.
        batch_tokens: padded tokens per batch; at least one sample goes in whatever its length.
        store: a folder to keep the signals in; interrupted scoring resumes there.
        seed: decides the projection, together with the parameters' names.
        progress: show how far it is on the first rank's standard error: a bar on a terminal, elsewhere a
            line now and then.
        pooling: what an embedding is the mean of: "labels", "all" tokens, or the "last" one.
        layer: the block whose output "embedding" is taken from. If unset, the last hidden state.
        grad_dtype: "float32", or "float16" for half the room.
        autocast: what forward passes compute in, as mixed-precision training does: torch.bfloat16 or
            torch.float16. If unset, as `torch.autocast` around this call says, or else in the weights' type.
        tell: gets a sentence, on the first rank, on samples set aside and on a model that is measured sample
            by sample. If unset, a warning.

    Returns:
        Signals with what was wanted, `num_tokens`, and `ok`, False for samples that were set aside: empty,
        without a label token, longer than the model's positions, or with a value that is not finite.

    Raises:
        SignalError: no sample can be measured, or the store is of another request.

    Example:
        signals = collect(model, dataset, want=("loss", "grad"), store="signals")
        similarity = signals.grad @ signals.grad.T
    """
    _check_arguments(locals())
    request = SignalRequest.of(
        want, grad_dim=grad_dim, seed=seed, pooling=pooling, layer=layer, grad_dtype=grad_dtype
    )
    say = _teller(tell)
    start = time.perf_counter()
    # Before the model is prepared, which hides the parameters that learn: of an adapted model, the scope.
    reshard(uncompiled(model))
    scope = resolve(uncompiled(model), parameters) if request.gradients else None
    autocast = autocast or autocast_here(device_of(model))
    with prepared(model) as bare:
        one = ScoringRun(bare, dataset, collator, request, scope, precondition, batch_tokens, say, autocast)
        signals = one.run(None if store is None else Path(store).expanduser(), start, progress)
    signals = replace(signals, texts=Texts(dataset, getattr(collator, "tokenizer", None)))
    if report := signals.report():
        say(report)
    assert signals.ok is not None
    if not signals.ok.any():
        unusable = any(kind.endswith("not finite") for kind in signals.problems)
        if not len(signals):
            raise SignalError("The data set is empty; there is nothing to measure.")
        cause = "the model's weights are unusable" if unusable else "none has a token to learn"
        raise SignalError(f"None of the {len(signals)} samples could be measured; {cause} ({report}).")
    return signals


def _teller(tell: Callable[[str], None] | None) -> Callable[[str], None]:
    """Only the first rank speaks; a warning points at whoever called `collect`."""

    def say(sentence: str) -> None:
        if rank() == 0:
            warnings.warn(sentence, stacklevel=3) if tell is None else tell(sentence)

    return say


# ---- arguments ---------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    description: str
    fits: Any


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _names(value: object) -> bool:
    parts = [value] if isinstance(value, str) else value
    return isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts)


def _or_none(fits: Any) -> Any:
    return lambda value: value is None or fits(value)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_KINDS = {
    "model": _Kind(
        "a model with parameters", lambda m: isinstance(m, nn.Module) and any(True for _ in m.parameters())
    ),
    "collator": _Kind("a function that makes a batch of samples", _or_none(callable)),
    "parameters": _Kind("'blocks', 'all', or patterns of names", _names),
    "grad_dim": _Kind(
        "from 1 to 16,777,216, or None for whole gradients",
        _or_none(lambda n: _whole(n) and 1 <= n <= 2**24),
    ),
    "batch_tokens": _Kind("at least 1, a whole number", lambda n: _whole(n) and n >= 1),
    "store": _Kind("a folder", _or_none(lambda path: isinstance(path, str | os.PathLike))),
    "seed": _Kind("a whole number from 0", lambda n: _whole(n) and n >= 0),
    "layer": _Kind("the number of a block, or None for the last hidden state", _or_none(_whole)),
    "autocast": _Kind("torch.bfloat16 or torch.float16, or None", _or_none(lambda t: t in _FLOATS)),
    "tell": _Kind("a function that takes a sentence", _or_none(callable)),
}


def _check_arguments(arguments: dict[str, Any]) -> None:
    """Raise SignalError for the first argument that is not of its kind; unknown names are passed over."""
    for name, (description, fits) in _KINDS.items():
        if name in arguments and not fits(value := arguments[name]):
            model = f"a {type(value).__name__} without any" if isinstance(value, nn.Module) else None
            raise SignalError(f"{name} must be {description}; found {model or shown(value)}.")
