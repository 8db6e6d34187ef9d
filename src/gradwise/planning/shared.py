"""Signals that several runs need, measured once: the first run keeps them, later ones read them.

Every run is charged what measuring cost, whoever did it, so that an arm of a comparison is not cheaper for
coming second. Values are found again by everything they depend on: the weights themselves rather than the
model's name, the tokens of the data rather than their path.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from gradwise import __version__
from gradwise.atomic import write_bytes
from gradwise.errors import SignalError
from gradwise.folders import claimed
from gradwise.locks import FileLock
from gradwise.signals.scoring_run import configuration_digest, weights_digest
from gradwise.stored import damaged
from gradwise.training.record import RunRecord

Arrays = dict[str, NDArray[Any]]
SECONDS = "seconds"
FILES = ("*.npz", ".*.lock")

CHANGED_BY_TRAINER = ("_token_id",)
"""Ends of keys of a configuration that the Trainer changes as it begins. No value depends on them, and a
comparison by time plans an arm before that."""


@dataclass(frozen=True)
class SharedSignals:
    """Arrays of one scoring run, and its cost."""

    arrays: Arrays
    seconds: float
    shared: bool = False
    """Whether another run computed them."""


def measure_or_read(
    folder: Path, key: dict[str, Any], measure: Callable[[], Arrays], record: RunRecord
) -> SharedSignals:
    """The arrays for `key` out of `folder`, measured and put there if nobody has yet.

    One process measures while others that want the same wait; what a run waits, hashes and reads is not
    charged to it, what the measuring cost is.

    Args:
        folder: created if missing; refused if it holds anything else.
        key: everything the values depend on, as plain values.
        measure: does the work.
        record: of the run that is charged.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path, lock = folder / f"{name}.npz", folder / f".{name}.lock"
    # Waiting for another run says nothing about what this one would have cost. The time that measuring took
    # is charged below, whoever measured.
    with record.uncharged():
        with _claimed(folder):  # refused before anything is measured
            lock.touch()  # or the folder, empty again, would go with the claim
        with FileLock(lock, wait=True):
            signals = _read(path)
            if signals is None:
                start = time.perf_counter()
                arrays = measure()
                signals = SharedSignals(arrays, time.perf_counter() - start)
                with _claimed(folder):
                    _write(path, key, signals)
    record.charge(signals.seconds)
    return signals


def key_of(model: torch.nn.Module, samples: object, **settings: object) -> dict[str, Any]:
    """What per-sample values depend on: weights, architecture, tokens, software, and `settings`.

    Args:
        model: as it stands now.
        samples: anything indexable of {"input_ids": [...], "labels": [...]}.
        settings: plain values: the quantities, the size of a batch, ...
    """
    return {
        "model": type(model).__name__,
        "weights": weights_digest(model),
        "config": configuration_digest(model, without=CHANGED_BY_TRAINER),
        "data": _data_digest(samples),
        "device": next(model.parameters()).device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gradwise": __version__,
        **settings,
    }


def _data_digest(samples: object) -> str:
    state = hashlib.blake2b(digest_size=16)
    for lengths, values in _columns(samples):
        state.update(np.ascontiguousarray(lengths, dtype="<i8").tobytes())
        state.update(np.ascontiguousarray(values, dtype="<i8").tobytes())
    return state.hexdigest()


def _columns(samples: Any) -> Iterator[tuple[Any, Any]]:
    """Lengths and flat values of `input_ids` and `labels`, a stretch of the data at a time."""
    if not hasattr(samples, "with_format"):
        for number in range(len(samples)):
            for values in (samples[number][name] for name in ("input_ids", "labels")):
                yield [len(values)], values
        return
    names = [name for name in ("input_ids", "labels") if name in samples.column_names]
    for table in samples.select_columns(names).with_format("arrow").iter(batch_size=10_000):
        for name in names:
            for chunk in table.column(name).chunks:
                yield chunk.value_lengths(), chunk.flatten()


def _claimed(folder: Path) -> Any:
    """Claimed for a moment only: many runs read and write there, each value under a lock of its own."""
    return claimed(folder, "shared", FILES, wait=True)


def _read(path: Path) -> SharedSignals | None:
    """What was measured, or None where nothing was; a damaged file counts as nothing and is replaced."""
    if not path.exists():
        return None
    try:
        with damaged(path, SignalError), np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name not in (SECONDS, "key")}
            return SharedSignals(arrays, float(stored[SECONDS]), shared=True)
    except SignalError:
        return None


def _write(path: Path, key: dict[str, Any], measured: SharedSignals) -> None:
    content = io.BytesIO()
    about: dict[str, Any] = {SECONDS: np.array(measured.seconds), "key": np.array(json.dumps(key))}
    np.savez(content, **measured.arrays, **about)
    write_bytes(path, content.getvalue())
