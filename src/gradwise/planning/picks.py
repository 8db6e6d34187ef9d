"""`picks.parquet`: every pick with its reason, for people to read and for other programs."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from gradwise.atomic import write_parquet
from gradwise.methods.decision import Selection
from gradwise.planning.context import RunContext
from gradwise.ranks import on_first

PREVIEWED = 64
"""Tokens of a sample that are shown."""


def keep_picks(context: RunContext, selection: Selection, *, step: int) -> None:
    """Write the picks of a run's decision before a step into its folder, if there is more to say than
    indices."""
    if selection.columns:
        path = context.folder / "plan" / f"picks-{step}.parquet"
        on_first(lambda: write_picks(path, selection, context.train.dataset, context.tokenizer))


def write_picks(path: Path, selection: Selection, dataset: Any, tokenizer: Any = None) -> None:
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
    own = dataset.select(indices) if hasattr(dataset, "select") else None
    for name in ("domain", "origin"):
        if own is not None and name in own.column_names:
            columns[name] = list(own[name])
    count = len(indices)
    columns["why"] = list(selection.why) if len(selection.why) == count else list(selection.why) * count
    columns |= {name: _nulls_where_masked(values) for name, values in selection.columns.items()}
    if selection.weights is not None:
        columns["weight"] = np.asarray(selection.weights)
    readable = hasattr(tokenizer, "batch_decode") and "input_ids" in getattr(dataset, "column_names", ())
    if readable:
        begun = [list(dataset[int(index)]["input_ids"][:PREVIEWED]) for index in indices]
        columns["text"] = tokenizer.batch_decode(begun, skip_special_tokens=True)
    write_parquet(path, pyarrow.table(columns))


def _nulls_where_masked(values: Any) -> pyarrow.Array:
    return pyarrow.array(np.ma.getdata(values), mask=np.ma.getmaskarray(values))
