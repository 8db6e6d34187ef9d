"""Signals by recipe: load the model and the data it names, and measure every sample."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow
import transformers
from torch import nn

from gradwise.atomic import parquet_bytes
from gradwise.console import say
from gradwise.data import Collator, Data, Pool, load
from gradwise.errors import DataError, RecipeError
from gradwise.folders import add_file, check_claimable
from gradwise.planning import Scorer
from gradwise.precision import autocast_of
from gradwise.ranks import check_same, is_first, join, on_each, on_first
from gradwise.recipe import Model, Recipe
from gradwise.run.model import Tell, load_model, load_tokenizer
from gradwise.signals import Signals, collect
from gradwise.signals.request import QUANTITIES
from gradwise.signals.vocabulary import check_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = "rows.parquet"

Part = Literal["train", "validation", "target"]


def collect_signals(
    recipe: Recipe,
    out: Path,
    *,
    want: Sequence[str],
    part: Part = "train",
    tell: Tell = say,
    progress: bool = True,
) -> Signals:
    """Measure a recipe's data with its model, or with the one under `signals`, into a store.

    Beside the store stands `rows.parquet`: the record and the source of each row.

    Args:
        recipe: with `model` and `data`.
        out: the store's folder; interrupted scoring resumes there.
        want: quantities, as in `gradwise.collect`.
        part: which part of the data.
        tell: gets a sentence on each stage.
        progress: show a bar.

    Raises:
        GradwiseError: in one clear sentence.
    """
    joined(recipe)
    out = out.expanduser()
    on_first(lambda: check_claimable(out, "signals"))  # before anything is read
    scorer, pool = on_each(lambda: _measured(recipe, part, tell, progress))
    check_same(pool.fingerprint, "The data")
    check_tokens(*scorer[:3])
    signals = collect(
        *scorer[:3],
        want=want,  # type: ignore[arg-type]
        parameters=recipe.signals.parameters,
        grad_dim=recipe.signals.grad_dim,
        grad_dtype=recipe.signals.grad_dtype,
        batch_tokens=recipe.signals.batch_tokens,
        store=out,
        seed=recipe.seed,
        progress=progress,
        autocast=autocast_of(recipe.train.arguments),
        tell=lambda sentence: tell(f"Warning: {sentence}"),
    )
    # Last: a store that is complete without it is still a store, and the next run of the command adds it.
    on_first(lambda: add_file(out / ROWS, parquet_bytes(_rows(pool))))
    return signals


def _measured(recipe: Recipe, part: Part, tell: Tell, progress: bool) -> tuple[Scorer, Pool]:
    settings, data = sections(recipe)
    proxied = recipe.signals.model is not None
    tokenizer = load_tokenizer(settings)
    pool = load(data, part, tokenizer, progress=progress and is_first())
    tell(str(pool.report))
    model = _placed(recipe, load_model(settings, None if proxied else recipe.adapter))
    return Scorer(model, pool.dataset, Collator.for_tokenizer(tokenizer)), pool


def what_measures(
    recipe: Recipe, pool: Pool, target: Pool | None, tokenizer: "PreTrainedTokenizerBase", *, progress: bool
) -> Scorer:
    """The model that decides for a recipe, with the pool's records in its tokens, row by row, and the
    target's."""
    proxy = load_proxy(recipe, pool, target, progress=progress)
    if proxy is not None:
        return proxy
    return Scorer(placed_model(recipe), pool.dataset, Collator.for_tokenizer(tokenizer))


def placed_model(recipe: Recipe) -> Any:
    """The recipe's model with its adapter, on this rank's device; a fresh adapter is the one of a run."""
    transformers.set_seed(recipe.seed)
    return _placed(recipe, load_model(sections(recipe)[0], recipe.adapter))


def load_proxy(recipe: Recipe, pool: Pool, target: Pool | None, *, progress: bool) -> Scorer | None:
    """The model under `signals` with the pool's records in its tokens, row by row; None where there is none,
    or nothing to measure.

    Raises:
        DataError: when a record means nothing to the proxy.
    """
    needs = recipe.select.needs | recipe.order.needs
    if recipe.signals.model is None or not needs & set(QUANTITIES):
        return None
    settings, data = sections(recipe)
    tokenizer = load_tokenizer(settings)
    # Duplicates by one tokenizer's tokens need not be duplicates by another's.
    theirs = load(_keeping_all(data), "train", tokenizer, progress=progress)
    rows = _aligned(pool, theirs)
    model = _placed(recipe, load_model(settings))
    target_samples, goal = None, recipe.goal
    if target is not None and goal is not None:
        whole = load(_keeping_all(data), goal, tokenizer, progress=progress)
        target_samples = whole.dataset.select(_aligned(target, whole))
    proxy = Scorer(model, theirs.dataset.select(rows), Collator.for_tokenizer(tokenizer), target_samples)
    check_tokens(*proxy[:3])
    check_tokens(model, target_samples, proxy.collate)
    return proxy


def _aligned(pool: Pool, theirs: Pool) -> list[int]:
    """Rows of the proxy's samples that are the pool's records, in the pool's order."""
    # Both read the same records, and either tokenizer may leave out some of them.
    row_of_record = {record: row for row, record in enumerate(theirs.records.tolist())}
    missing = [row for row, record in enumerate(pool.records.tolist()) if record not in row_of_record]
    if missing:
        raise DataError(
            f"signals.model: {len(missing)} records are empty to that model's tokenizer "
            f"(first: {pool.dataset[missing[0]]['origin']}); leave them out, or take another model."
        )
    return [row_of_record[record] for record in pool.records.tolist()]


def _keeping_all(data: Data) -> Data:
    return replace(data, duplicates="keep")


def sections(recipe: Recipe) -> tuple[Model, Data]:
    """The model that measures and the data that are measured; raises RecipeError where one is missing."""
    model = recipe.signals.model or recipe.model
    if model is None:
        raise RecipeError("The recipe names no model; give model.name, a hub name or a local folder.")
    if recipe.data is None:
        raise RecipeError("The recipe names no data; give data.train.")
    return model, recipe.data


def joined(recipe: Recipe) -> Any:
    """Connect the ranks where there are several; returns the device that this one would train on."""
    return join(cpu=bool(recipe.train.arguments.get("use_cpu")))


def _placed(recipe: Recipe, model: nn.Module) -> Any:
    return model.to(joined(recipe))


def _rows(pool: Pool) -> pyarrow.Table:
    dataset = pool.dataset
    return pyarrow.table(
        {
            "row": np.arange(len(dataset)),
            "origin": list(dataset["origin"]),
            "domain": list(dataset["domain"]),
            "tokens": pool.lengths,
            "label_tokens": pool.label_tokens,
        }
    )
