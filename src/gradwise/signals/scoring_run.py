"""One scoring run: what to measure in which blocks, and where the rows go."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradwise.console import Progress
from gradwise.data import Collator
from gradwise.errors import SignalError
from gradwise.numerics.sampling import evenly
from gradwise.ranks import connected, gathered, on_each, on_first
from gradwise.signals.batching import Batcher, Collate, batches, with_copies
from gradwise.signals.column_buffer import (
    MEASURED,
    NOT_FINITE,
    NOT_HELD,
    Column,
    ColumnBuffer,
    InMemoryBuffer,
    stored,
)
from gradwise.signals.engine_check import EngineCheck, EngineCheckResult, by_autograd
from gradwise.signals.measure import InseparableError, Measurer, middle_block
from gradwise.signals.model_cache import CachedCheck, cache_of, structure
from gradwise.signals.precondition import Preconditioner
from gradwise.signals.quantities import Signals
from gradwise.signals.rank_schedule import RankSchedule, RunKind
from gradwise.signals.request import MIDDLE, Quantity, SignalRequest
from gradwise.signals.samples import Inspection, check_indexable, inputs_only, inspect
from gradwise.signals.scope import Scope
from gradwise.signals.shards import class_name, gathered_in, units, whole_tensor
from gradwise.signals.store import Store, read, verify
from gradwise.signals.sums import GradientRequest
from gradwise.signals.vocabulary import padding_collator

COLLATED = 8
"""Samples by which a collator that is not gradwise's is recognised."""

NOTE_EVERY = 5.0
"""Seconds between notes of the time spent; interrupted scoring loses at most as much of it."""


class ScoringRun:
    """One scoring run of a data set with a prepared model; arguments as in `collect`, `scope` where
    gradients are wanted."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        collator: Collate | None,
        signal_request: SignalRequest,
        scope: Scope | None,
        precondition: Any,
        batch_tokens: int,
        tell: Callable[[str], None] = warnings.warn,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.autocast = autocast
        self.model: Any = model
        self.collate = collator or padding_collator(model)
        check_indexable(dataset)
        # A collator of somebody else's may need any column.
        self.dataset = inputs_only(dataset, model) if isinstance(self.collate, Collator) else dataset
        self.signal_request = signal_request
        self.batch_tokens = batch_tokens
        self.inspection: Inspection = inspect(self.dataset, model, self.collate)
        self.batcher = Batcher(self.dataset, self.collate, self.inspection)
        self.scope = scope
        self.gradient_request: GradientRequest | None = None
        if scope is not None:
            self.gradient_request = _gradient_request(model, scope, signal_request, precondition)
        elif precondition is not None:
            raise SignalError("precondition changes gradients, but neither grad nor grad_norm is wanted.")
        self.rank_schedule = RankSchedule(self._joined) if units(model) else None
        self.tell = tell
        self.sentences: list[str] = []
        self.engine_check = EngineCheck(
            model,
            self.batcher,
            signal_request,
            self.gradient_request,
            batch_tokens,
            self._tell,
            autocast,
            self.rank_schedule,
        )

    def run(self, path: Path | None, start: float, progress: bool) -> Signals:
        """Measure what is not yet in the buffer; `start` is when the cost began, by `time.perf_counter`."""
        order, first = self.inspection.measurable(), self.inspection.first
        # A copy costs as much as any sample and has the same values.
        distinct = order[first[order] == order]
        check = self._check(distinct) if len(distinct) else EngineCheckResult()
        batch_tokens = 1 if check.one_at_a_time else self.batch_tokens
        blocks = with_copies(batches(distinct, self.inspection.lengths, batch_tokens), order, first)
        columns = self._columns()
        request = self._request(columns, len(blocks)) if path is not None or connected()[1] > 1 else {}
        # Before the first block is written: rows of different models would stand in one store unnoticed.
        _check_ranks_agree(request)
        if path is not None:
            return self._stored(path, request, columns, blocks, check, start, progress)
        buffer = InMemoryBuffer(len(self.dataset), columns, len(blocks))
        self._fill(buffer, blocks, check, progress)
        arrays = buffer.close(blocks)
        return self._signals(arrays, time.perf_counter() - start)

    def _tell(self, sentence: str) -> None:
        self.sentences.append(sentence)
        self.tell(sentence)

    def _check(self, order: NDArray[np.int64]) -> EngineCheckResult:
        """How the model can be measured: as found before, if it is the same model, asked for the same, and no
        longer samples have come."""
        # Ranks that share a model must all try, or none; what each of them remembers is its own.
        if self.rank_schedule is not None:
            return self.engine_check.run(order)
        names = None if self.scope is None else tuple(self.scope.parameters)
        is_default = type(self.collate) is Collator
        row = self.dataset[int(order[-1])]
        key = (
            self.signal_request,
            names,
            self.gradient_request is not None and self.gradient_request.preconditioner is not None,
            self.autocast,
            self.batch_tokens,
            self.collate if is_default else id(self.collate),
            (type(row), tuple(row) if isinstance(row, Mapping) else ()),
            structure(self.model),
            configuration_digest(self.model),
        )
        checks, longest = cache_of(self.model).checks, int(self.inspection.lengths[order[0]])
        if key in checks and longest <= checks[key].longest:
            for sentence in checks[key].sentences:
                self.tell(sentence)
            return checks[key].result
        check = self.engine_check.run(order)
        # An adapter's first factor has no gradient before the first step. A check without it is not
        # remembered, so that the model is tried again when there is something to compare.
        if check.tried and check.certain:
            checks[key] = CachedCheck(
                check, longest, tuple(self.sentences), None if is_default else self.collate
            )
        return check

    def _stored(
        self,
        path: Path,
        request: Mapping[str, Any],
        columns: Mapping[str, Column],
        blocks: list[NDArray[np.int64]],
        check: EngineCheckResult,
        start: float,
        progress: bool,
    ) -> Signals:
        store = Store(path, request, len(self.dataset), columns, len(blocks))
        try:
            complete, spent = on_first(lambda: (store.manifest["complete"], store.manifest["seconds"]))
            if not complete:

                def note() -> None:
                    store.note(seconds=spent + time.perf_counter() - start)

                self._fill(store, blocks, check, progress, note)
                signals = self._signals(store.close(blocks), spent + time.perf_counter() - start)
                store.finish(signals.problems, signals.seconds)
            else:
                # Once is enough for all ranks; what was just written need not be read again at all.
                on_first(lambda: verify(path))
        finally:
            store.release()
        return Signals(**read(path, verify=False))

    # ---- measuring ---------------------------------------------------------------------------------------

    def _fill(
        self,
        buffer: ColumnBuffer,
        blocks: list[NDArray[np.int64]],
        check: EngineCheckResult,
        progress: bool,
        note: Callable[[], None] = lambda: None,
    ) -> None:
        buffer.fill("num_tokens", self.inspection.num_tokens)
        for rows in self.inspection.problems.values():
            buffer.leave_out(rows)
        number, ranks = connected()
        # Every n-th block: blocks are ordered by length, so that ranks get equal work without exchanging
        # anything.
        share = np.flatnonzero(~buffer.done())[number::ranks].tolist()
        measure = Measurer(
            self.model,
            self.signal_request,
            self.gradient_request,
            check.unseen,
            self.autocast,
            self.rank_schedule,
            plain_head=check.plain_head,
        )
        noted = time.perf_counter()
        total = sum(len(blocks[block]) for block in share)
        together = nullcontext() if self.rank_schedule is None else self.rank_schedule.together()
        with together, Progress("signals", total, "samples", shown=progress and number == 0) as bar:
            for block in share:
                buffer.write(block, blocks[block], self._rows(measure, blocks[block], buffer.columns))
                bar.update(len(blocks[block]))
                if time.perf_counter() - noted > NOTE_EVERY:
                    note()
                    noted = time.perf_counter()

    def _rows(
        self, measure: Measurer, rows: NDArray[np.int64], columns: Mapping[str, Column]
    ) -> dict[str, NDArray]:
        first = self.inspection.first
        distinct = rows[first[rows] == rows]
        measured = self.engine_check.whole_batches.pop(int(rows[0]), None) or self.batcher.measure(
            measure, distinct
        )
        # Copies have the values of the sample that they are copies of.
        place = {row: number for number, row in enumerate(distinct.tolist())}
        source = [place[row] for row in first[rows].tolist()]
        flags = np.full(len(rows), MEASURED, dtype=np.uint8)
        values: dict[str, NDArray] = {"flags": flags}
        for name, of_distinct in measured.items():
            array = of_distinct[source]
            # Flagged by quantity: a sample with an infinite gradient may still have a loss that can be used.
            finite = np.isfinite(array.reshape(len(rows), -1)).all(axis=1)
            flags[~finite] |= NOT_FINITE[name]
            if name in columns:
                values[name], fits = stored(array, columns[name])
                flags[~fits] |= NOT_HELD
        return values

    def _joined(self, kind: RunKind) -> None:
        """A run of another rank's kind, with the shortest sample; the result is of no use."""
        batch = self.batcher.batch(self.inspection.measurable()[-1:])
        if kind.learning and not kind.gradients:
            assert self.scope is not None
            learning = {name: self.scope.parameters[name] for name in kind.learning}
            by_autograd(self.model, batch, learning, self.autocast)
            return
        quantities: list[Quantity] = ["loss"]
        if kind.gradients:
            quantities.append("grad_norm")
        if kind.head:
            quantities.append("head_norm")
        gradient_request = (
            GradientRequest(self.scope, norms=True) if kind.gradients and self.scope is not None else None
        )
        plain_head = self.engine_check.plain_head
        measure = Measurer(
            self.model,
            SignalRequest(tuple(quantities)),
            gradient_request,
            kind.learning,
            self.autocast,
            plain_head=plain_head,
        )
        # `once`, since the ranks have agreed on a single run: a second one, with another scale, would meet a
        # different run of theirs.
        with suppress(InseparableError):
            measure.once(batch)

    # ---- what comes of it --------------------------------------------------------------------------------

    def _columns(self) -> dict[str, Column]:
        columns = {"num_tokens": Column("int32", ()), "flags": Column("uint8", ())}
        tails = {
            "embedding": lambda: (self._width(self.signal_request.layer),),
            "middle_embedding": lambda: (self._width(middle_block(self.model)),),
            "grad": lambda: (self.signal_request.grad_dim or (self.scope.size if self.scope else 0),),
        }
        for name in self.signal_request.quantities:
            dtype = self.signal_request.grad_dtype if name == "grad" else "float32"
            columns[name] = Column(dtype, tails[name]() if name in tails else ())
        return columns

    def _width(self, block: object) -> int:
        """Length of the hidden states after a block; None for the last ones."""
        if block is None:
            return int(self.model.get_output_embeddings().weight.shape[-1])
        config = self.model.config
        return int((config.get_text_config() if hasattr(config, "get_text_config") else config).hidden_size)

    def _signals(self, arrays: dict[str, NDArray], seconds: float) -> Signals:
        flags = arrays["flags"]
        problems = dict(self.inspection.problems)
        measured = (flags & MEASURED) > 0
        for name, flag in NOT_FINITE.items():
            if (wrong := measured & ((flags & flag) > 0)).any():
                problems[f"{name} not finite"] = np.flatnonzero(wrong)
        if (wrong := (flags & NOT_HELD) > 0).any():
            problems["grad beyond float16; give grad_dtype='float32'"] = np.flatnonzero(wrong)
        quantities: dict[str, Any] = {name: array for name, array in arrays.items() if name != "flags"}
        return Signals(len(flags), **quantities, ok=flags == MEASURED, problems=problems, seconds=seconds)

    def _request(self, columns: Mapping[str, Column], blocks: int) -> dict[str, Any]:
        """What decides the values; kept in the manifest, by which a store is recognised."""
        request: dict[str, Any] = {
            "size": len(self.dataset),
            "columns": columns,
            "model": class_name(self.model),
            "weights": weights_digest(self.model),
            "configuration": configuration_digest(self.model),
            "autocast": None if self.autocast is None else str(self.autocast),
            "data": self.inspection.fingerprint,
            "batch_tokens": self.batch_tokens,
            "blocks": blocks,
        }
        # A collator of somebody else's may fail on one rank, and the others would wait for its description.
        if (collated := on_each(self._collated)) is not None:
            request["collator"] = collated
        if (adapters := _adapters(self.model)) is not None:
            request["adapters"] = adapters
        if (computed := gathered_in(self.model)) is not None:
            request["mixed precision"] = str(computed)
        if "embedding" in self.signal_request:
            request |= {"pooling": self.signal_request.pooling, "layer": self.signal_request.layer}
        if "middle_embedding" in self.signal_request:
            request |= {"pooling": self.signal_request.pooling, "middle": MIDDLE}
        if self.gradient_request is not None and self.scope is not None:
            # A digest: the names of a large model would make a manifest that nobody can read.
            names = hashlib.sha256("\n".join(self.scope.parameters).encode()).hexdigest()[:16]
            projector, preconditioner = self.gradient_request.projector, self.gradient_request.preconditioner
            request |= {
                "scope": f"{len(self.scope.parameters)} parameters, {names}",
                "projection": None if projector is None else projector.description(),
                "precondition": None if preconditioner is None else preconditioner.digest(),
            }
        return request

    def _collated(self) -> str | None:
        """A hash of what a collator that is not gradwise's makes of some samples; None where that is what
        gradwise's makes of them."""
        if isinstance(self.collate, Collator):
            return None
        usable = np.flatnonzero(self.inspection.lengths)
        rows = usable[evenly(len(usable), COLLATED)]
        theirs = _made_of(self.collate, self.dataset, rows)
        if theirs != _made_of(self.collate, self.dataset, rows):
            return "draws at random"  # no later process could compare what it makes
        with suppress(Exception):  # samples that only their own collator can read
            if theirs == _made_of(padding_collator(self.model), self.dataset, rows):
                return None
        return theirs


def _gradient_request(
    model: nn.Module, scope: Scope, signal_request: SignalRequest, precondition: Any
) -> GradientRequest:
    projector = None
    if "grad" in signal_request and signal_request.grad_dim is not None:
        projector = cache_of(model).projector(signal_request.grad_dim, signal_request.seed)
    return GradientRequest(
        scope,
        projector,
        norms="grad_norm" in signal_request,
        whole="grad" in signal_request and signal_request.grad_dim is None,
        preconditioner=None if precondition is None else Preconditioner.of(precondition, scope),
    )


def _made_of(collate: Collate, dataset: Any, rows: NDArray[np.int64]) -> str:
    """A hash of what a collator makes of samples, each alone."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        for name, value in sorted(collate([dataset[int(row)]]).items()):
            digest.update(f"{name} {value.tolist() if isinstance(value, Tensor) else value}".encode())
    return digest.hexdigest()


def _adapters(model: nn.Module) -> str | None:
    """A hash of the adapters in use and their strength, which the weights do not show; None without any."""
    names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
    layers = [
        (path, [str(getattr(module, name, None)) for name in names])
        for path, module in model.named_modules()
        # A flag of PEFT's layers; transformers' own models have methods of that name.
        if isinstance(getattr(module, "disable_adapters", None), bool)
    ]
    return hashlib.blake2b(str(layers).encode(), digest_size=16).hexdigest() if layers else None


def configuration_digest(model: nn.Module, *, without: tuple[str, ...] = ()) -> str:
    """A hash of what else the values depend on: the model's configuration (positions, norms, caps) and the
    attention it runs with; keys that end as one of `without` are left out."""
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    # A model that was moved, or saved by another version, has the same values and finds its store again.
    passing = ("_name_or_path", "use_cache", "transformers_version", *without)
    settings = {name: value for name, value in values.items() if not name.endswith(passing)}
    described = json.dumps(
        [settings, getattr(config, "_attn_implementation", None)], sort_keys=True, default=str
    )
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """A hash of every parameter and buffer, by name; several are hashed at a time.

    That of a sharded model is the same as if it were whole; a collective call then.
    """

    def one(item: tuple[str, Tensor]) -> bytes:
        name, tensor = item
        plain = tensor.detach().cpu().contiguous()
        state = hashlib.blake2b(f"{name} {plain.dtype} {tuple(plain.shape)}".encode(), digest_size=16)
        # As bytes, since numpy has no bfloat16.
        state.update(plain.flatten().view(torch.uint8).numpy().data)
        return state.digest()

    if units(model):  # gathered one by one, in the same order on all ranks
        digests = [one((name, whole_tensor(tensor))) for name, tensor in model.state_dict().items()]
    else:
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(one, model.state_dict().items()))
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


def _check_ranks_agree(request: Mapping[str, Any]) -> None:
    """Rows of other weights, data or settings than the first rank's must not stand beside its own."""
    described = gathered(dict(request))
    for other, theirs in enumerate(described):
        differ = [name for name in described[0] if described[0][name] != theirs.get(name)]
        if differ:
            raise SignalError(
                f"Rank {other} would measure something else than rank 0 ({', '.join(differ)} differ); give "
                "all ranks the same model, data and settings."
            )
