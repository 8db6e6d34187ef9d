"""`picks.parquet`: every pick with its reason, for people to read and for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow

from gradwise.atomic import write_parquet
from gradwise.methods.decision import Selection, reasons
from gradwise.numerics.plane import principal_plane
from gradwise.numerics.sampling import evenly
from gradwise.planning.context import RunContext
from gradwise.planning.scoring import PoolSignals
from gradwise.ranks import on_first

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREVIEWED = 64
"""Tokens of a sample that are shown."""

PLACED = 2000
"""Samples of the pool whose places are written, evenly spread over it."""


def keep_pool(context: RunContext, scored: PoolSignals) -> None:
    """Write `plan/pool.parquet` into a run's folder: domains of some samples of the pool and, where
    embeddings were computed, their places in the plane of the two largest principal components."""
    domain, embedding = context.train.domain, scored.signals.any_embedding
    rows = np.arange(len(context.train)) if scored.rows is None else scored.rows
    usable = np.flatnonzero(
        np.ones(len(rows), dtype=bool) if scored.signals.ok is None else scored.signals.ok
    )
    if (domain is None and embedding is None) or not len(usable):
        return

    def write() -> None:
        shown = usable[evenly(len(usable), PLACED)]
        columns: dict[str, Any] = {"index": rows[shown]}
        if domain is not None:
            columns["domain"] = list(domain[rows[shown]])
        if embedding is not None:
            plane, share = principal_plane(np.asarray(embedding[shown], dtype=np.float64))
            columns |= {"x": plane[:, 0], "y": plane[:, 1], "variance": np.full(len(shown), share)}
        write_parquet(context.folder / "plan" / "pool.parquet", pyarrow.table(columns))

    # Only the report needs it, so the method that decides does not pay for it.
    with context.record.uncharged():
        on_first(write)


def keep_picks(context: RunContext, selection: Selection, *, step: int) -> None:
    """Write the picks of a run's decision before a step into its folder, if there is more to say than
    indices."""
    if selection.columns:
        path = context.folder / "plan" / f"picks-{step}.parquet"
        on_first(lambda: write_picks(path, selection, context.train.dataset, context.tokenizer))


def write_picks(
    path: Path, selection: Selection, dataset: Any, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> None:
    """A row for each pick, in the order picked: its index, domain, origin, reason and numbers, and how its
    text begins.

    Args:
        path: the file.
        selection: with `columns`.
        dataset: the pool; columns `domain` and `origin` are taken where there are such.
        tokenizer: decodes the previews. If None, no text is written.
    """
    indices = selection.indices
    columns: dict[str, Any] = {"index": indices}
    picked_rows = dataset.select(indices) if hasattr(dataset, "select") else None
    for name in ("domain", "origin"):
        if picked_rows is not None and name in picked_rows.column_names:
            columns[name] = list(picked_rows[name])
    columns["why"] = list(reasons(selection))
    columns |= {
        name: pyarrow.array(np.ma.getdata(values), mask=np.ma.getmaskarray(values))
        for name, values in selection.columns.items()
    }
    if selection.weights is not None:
        columns["weight"] = np.asarray(selection.weights)
    readable = "input_ids" in getattr(dataset, "column_names", ())
    if readable and tokenizer is not None and hasattr(tokenizer, "batch_decode"):
        # Only the beginning is decoded: a preview of a long document would cost as much as reading it.
        begun = [list(dataset[int(index)]["input_ids"][:PREVIEWED]) for index in indices]
        columns["text"] = tokenizer.batch_decode(begun, skip_special_tokens=True)
    write_parquet(path, pyarrow.table(columns))
