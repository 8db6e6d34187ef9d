"""The plan: an immutable, hashed stream of sample indices that decides what is trained on, and why.

A plan is a row of segments. A segment lies within one epoch, and its last batch may be short; what is ahead
of the segment being trained on can be replaced, what has been served cannot. Each segment's digest covers all
before it, so that two plans agree on everything up to a segment exactly when its digests are equal. Nothing
here knows of world size, loader workers or batches.

The plan of a run of very many epochs holds the next ones only: what was served long ago is dropped, and what
is not laid out yet is known by its number of epochs (`until`).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from gradwise.atomic import write_bytes
from gradwise.errors import PlanError
from gradwise.folders import FORMAT, check_format
from gradwise.places import places
from gradwise.stored import damaged
from gradwise.text import shown

DIGESTED = "gradwise plan 1"
"""What digests begin with; to be changed only with what they cover."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of the stream that is decided at one time.

    >>> Segment(np.array([2, 0, 1]), epoch=0, why=("given",)).reason(1)
    'given'
    """

    indices: NDArray[np.int64]
    """(n,) positions in the data set, in the order in which they are trained on."""

    epoch: int
    """The epoch that this belongs to, from 0."""

    why: tuple[str, ...]
    """The reasons that occur in this segment, each once."""

    reasons: NDArray[np.int32] | None = None
    """(n,) positions in `why`; None where a single reason holds for all."""

    weights: NDArray[np.float64] | None = None
    """(n,) each sample's weight, where it has one: it decided how often the sample occurs, or multiplies its
    loss if the recipe has `weights: loss`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", places(self.indices, "A segment"))
        for name in ("indices", "reasons", "weights"):
            values = getattr(self, name)
            if values is not None:
                # A copy, so that nobody who still holds the array can alter what was hashed.
                values = np.array(values, dtype=_TYPES[name])
                values.flags.writeable = False
                object.__setattr__(self, name, values)
        self._check()

    def _check(self) -> None:
        if not len(self.indices):
            raise PlanError("A segment needs at least one index; found none.")
        for name in ("reasons", "weights"):
            values = getattr(self, name)
            if values is not None and values.shape != self.indices.shape:
                raise PlanError(
                    f"A segment has {len(self.indices)} indices, but {name} of shape {values.shape}."
                )
        if self.reasons is None and len(self.why) != 1:
            raise PlanError(f"A segment with {len(self.why)} reasons must say which index has which.")
        if self.reasons is not None and not np.all((self.reasons >= 0) & (self.reasons < len(self.why))):
            raise PlanError(f"A segment names reasons outside its list of {len(self.why)}.")

    def __len__(self) -> int:
        return len(self.indices)

    def reason(self, position: int) -> str:
        """Why the sample at `position` of this segment is there."""
        return self.why[0 if self.reasons is None else int(self.reasons[position])]


_TYPES = {"indices": np.int64, "reasons": np.int32, "weights": np.float64}
"""The arrays of a segment in the order of its fields."""


@dataclass(frozen=True)
class Dropped:
    """What was served before the first segment that a plan still holds."""

    epochs: int
    entries: int
    digest: str
    """Digest of the last segment that was dropped."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The whole stream: what will be trained on, in which order.

    >>> plan = Plan.of([[2, 0, 1], [1, 2, 0]])
    >>> plan.indices.tolist(), plan.epochs, len(plan)
    ([2, 0, 1, 1, 2, 0], 2, 6)
    """

    segments: tuple[Segment, ...]
    """In the order served; epochs never decrease and start at `first_epoch`."""

    pool: int
    """Number of samples of the data set the indices point into."""

    dropped: Dropped | None = None
    """What is no longer held, if anything."""

    until: int | None = None
    """Epochs of the whole run, where they are more than are laid out."""

    def __post_init__(self) -> None:
        if not self.segments or not all(isinstance(segment, Segment) for segment in self.segments):
            raise PlanError(
                f"A plan needs at least one segment, each a gradwise.Segment; found {shown(self.segments)}."
            )
        epochs = [segment.epoch for segment in self.segments]
        first, steps = self.first_epoch, [later - earlier for earlier, later in pairwise(epochs)]
        if epochs[0] != first or any(step not in (0, 1) for step in steps):
            raise PlanError(
                f"Segments must go through the epochs {first}, {first + 1}, {first + 2}, ... in order; found "
                f"{shown(epochs)}."
            )
        if self.until is not None and self.until <= self.epochs:
            raise PlanError(f"A plan of {self.epochs} epochs cannot be continued until epoch {self.until}.")
        if not isinstance(self.pool, int | np.integer):
            raise PlanError(f"A plan's pool is a number of samples; found {shown(self.pool)}.")
        for segment in self.segments:
            if segment.indices.max() >= self.pool:
                raise PlanError(
                    f"The plan names sample {segment.indices.max()}, but there are only {self.pool}."
                )

    @classmethod
    def of(cls, epochs: Iterable[Sequence[int]], pool: int | None = None, why: str = "given") -> "Plan":
        """A plan with one segment per epoch from plain sequences of indices."""
        if not isinstance(epochs, Iterable) or isinstance(epochs, str):
            raise PlanError(f"A plan is made of a row of indices for each epoch; found {shown(epochs)}.")
        segments = tuple(
            Segment(indices, epoch, (why,))  # type: ignore[arg-type]
            for epoch, indices in enumerate(epochs)
        )
        largest = max((int(segment.indices.max()) for segment in segments), default=-1)
        return cls(segments, largest + 1 if pool is None else pool)

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)

    @property
    def first_epoch(self) -> int:
        """Number of the first epoch that is held."""
        return 0 if self.dropped is None else self.dropped.epochs

    @property
    def epochs(self) -> int:
        """Number of epochs up to the last one laid out."""
        return self.segments[-1].epoch + 1

    @property
    def epochs_of_run(self) -> int:
        """Number of epochs, those to be laid out later included."""
        return self.until or self.epochs

    @cached_property
    def indices(self) -> NDArray[np.int64]:
        """(len(plan),) the whole stream, as far as it is held."""
        return np.concatenate([segment.indices for segment in self.segments])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(segments + 1,) position in the stream at which each segment starts; the last entry is where the
        next one would."""
        first = 0 if self.dropped is None else self.dropped.entries
        return np.cumsum([first, *(len(segment) for segment in self.segments)])

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """For each segment a SHA-256 of it and of all before it."""
        digests: list[str] = []
        start = f"{DIGESTED} {self.pool}" if self.dropped is None else self.dropped.digest
        for segment in self.segments:
            # A chain: a segment's digest covers all before it, so that comparing two plans needs one
            # comparison.
            digests.append(_digest(digests[-1] if digests else start, segment))
        return tuple(digests)

    @property
    def digest(self) -> str:
        """SHA-256 of the whole plan."""
        return self.digests[-1]

    def of_epoch(self, epoch: int) -> tuple[Segment, ...]:
        """The segments of one epoch."""
        return tuple(segment for segment in self.segments if segment.epoch == epoch)

    def from_epoch(self, epoch: int) -> "Plan":
        """The plan without the epochs before `epoch`, which must have been served."""
        # The digest of the last dropped segment stands for all of them: later digests stay as they were.
        first_kept = next(n for n, segment in enumerate(self.segments) if segment.epoch >= epoch)
        if not first_kept:
            return self
        dropped = Dropped(epoch, int(self.starts[first_kept]), self.digests[first_kept - 1])
        return replace(self, segments=self.segments[first_kept:], dropped=dropped)

    def followed_by(self, segments: Iterable[Segment], *, after: int) -> "Plan":
        """A new plan that keeps the first `after` segments and continues with others: how a later decision
        takes over."""
        if not 0 <= after <= len(self.segments):
            raise PlanError(f"The plan has {len(self.segments)} segments; cannot keep {after}.")
        return replace(self, segments=(*self.segments[:after], *segments))

    def agrees_with(self, other: "Plan", position: int) -> bool:
        """Whether both plans serve the same first `position` samples for the same reasons."""
        if self.dropped != other.dropped:
            return False
        whole = int(np.searchsorted(self.starts, position, side="right")) - 1
        if whole and (len(other.digests) < whole or self.digests[whole - 1] != other.digests[whole - 1]):
            return False
        # Digests cover whole segments: the first entries of the one that is being served are compared
        # themselves.
        held = position - int(self.starts[0])
        return held <= len(other) and bool(np.array_equal(self.indices[:held], other.indices[:held]))

    def save(self, path: str | Path) -> None:
        """Write the plan to one file, atomically: arrays in safetensors, the rest in its header."""
        arrays: dict[str, NDArray] = {}
        for number, segment in enumerate(self.segments):
            for name in _TYPES:
                if (values := getattr(segment, name)) is not None:
                    # Half the file: indices and reasons fit 32 bits for any data set of this world.
                    short = values.dtype == np.int64 and values.max() < 2**32
                    arrays[f"{number}.{name}"] = values.astype(np.uint32) if short else values
        described = [{"epoch": segment.epoch, "why": segment.why} for segment in self.segments]
        header = {
            "format": str(FORMAT),
            "pool": str(self.pool),
            "digest": self.digest,
            "segments": json.dumps(described),
            "dropped": json.dumps(None if self.dropped is None else asdict(self.dropped)),
            "until": json.dumps(self.until),
        }
        write_bytes(Path(path), safetensors.numpy.save(arrays, metadata=header))

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan; raises PlanError when it is missing, damaged, altered, or of another format."""
        with damaged(Path(path), PlanError):
            with safetensors.safe_open(str(path), framework="numpy") as file:
                header = file.metadata() or {}
                check_format(int(header["format"]), f"The plan {path}", PlanError)
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = json.loads(header["segments"])
            segments = tuple(_segment(number, text, arrays) for number, text in enumerate(described))
            dropped, until = (json.loads(header.get(name, "null")) for name in ("dropped", "until"))
            plan = cls(segments, int(header["pool"]), dropped and Dropped(**dropped), until)
        # safetensors checks shapes, not contents: one changed index would train on another sample unnoticed.
        if plan.digest != header["digest"]:
            raise PlanError(f"The plan {path} was altered: its content does not match its digest.")
        return plan


def _segment(number: int, described: dict, arrays: dict[str, NDArray]) -> Segment:
    indices, reasons, weights = (arrays.get(f"{number}.{name}") for name in _TYPES)
    if indices is None:
        raise KeyError(f"{number}.indices")
    return Segment(indices, described["epoch"], tuple(described["why"]), reasons, weights)


def _digest(before: str, segment: Segment) -> str:
    digest = hashlib.sha256(before.encode())
    # Also what is said: two plans that train alike for different reasons are different decisions.
    digest.update(json.dumps([segment.epoch, len(segment), segment.why]).encode())
    for name in _TYPES:
        values = getattr(segment, name)
        digest.update(b"-" if values is None else values.tobytes())
    return digest.hexdigest()
