"""Order by recipe: measure what the order needs, and write the ordered data for other trainers."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import transformers
from numpy.typing import NDArray
from torch import nn

from gradwise.atomic import write_json, write_parquet
from gradwise.console import say
from gradwise.data import Collator, Pool, load, overlap
from gradwise.errors import RecipeError
from gradwise.folders import OwnedFolder, claimed
from gradwise.methods.decision import Order, reasons
from gradwise.methods.interfaces import Orderer
from gradwise.numerics.streams import stream_seed
from gradwise.planning.epochs import entries_of
from gradwise.precision import autocast_of
from gradwise.probing import Probe
from gradwise.ranks import is_first, on_each, on_first, world_size
from gradwise.recipe import Recipe
from gradwise.run.model import Tell, check_length, load_tokenizer
from gradwise.run.records import records_of
from gradwise.run.select import SIGNALS, TARGET, Selected, choose
from gradwise.run.signals import joined, placed_model, sections
from gradwise.signals.request import QUANTITIES
from gradwise.signals.vocabulary import check_tokens
from gradwise.temporary import TemporaryFolder
from gradwise.text import one_line
from gradwise.training.arguments import training_arguments

ORDERED, SUMMARY, GRAPH = "ordered.parquet", "order.json", "graph.parquet"


def order_samples(
    recipe: Recipe, out: Path, *, text: bool = True, tell: Tell = say, progress: bool = True
) -> Order:
    """One epoch of what `gradwise train` would begin with, put in order, in files. Raises GradwiseError.

    If every epoch has its own order, this is the first. A run measures influence as often as the `overhead`
    of `order` allows; here that is done once, with the weights as they are and an optimizer before its first
    step. The recipe's layers, annealing phase and schedule have no effect here.

    `ordered.parquet` is a training set, a row for each entry in order, with the records' own columns if
    `text` is set; `order.json` summarises it; `graph.parquet` holds the influences. Signals of every sample
    stay in `signals`, and interrupted scoring resumes there.
    """
    packed = recipe.data is not None and bool(recipe.data.packing)
    order = recipe.order.for_batches(recipe.train.batch_size, packed=packed)
    if order.influence is not None and recipe.model is None:
        raise RecipeError("The recipe names no model; give model.name, a hub name or a local folder.")
    joined(recipe)
    names = (ORDERED, SUMMARY, GRAPH, SIGNALS, TARGET)
    with claimed(out.expanduser(), "order", names) as folder:
        return _order(recipe, order, folder, text=text, tell=tell, progress=progress)


def _order(
    recipe: Recipe, order: Orderer, folder: OwnedFolder, *, text: bool, tell: Tell, progress: bool
) -> Order:
    out, influence, held_out = folder.path, order.influence, None
    if influence is not None and influence.target == "validation":
        held_out = on_each(lambda: _held_out(recipe, progress=progress))
    chosen = choose(recipe, out, more=order.needs, tell=tell, progress=progress)
    context, scored, rows = chosen.context, chosen.scored, np.arange(len(chosen.pool))
    signals = scored.signals if scored.for_order is None else scored.for_order
    if scored.rows is not None:
        # Of samples that were not picked, nothing may have been measured.
        measured = bool(order.needs & set(QUANTITIES))
        signals = signals if measured else context.train.described(order.needs)
        rows = scored.rows if measured else rows
    # Orders count within the scored samples; `rows` brings their places back to the pool's afterwards.
    entries = np.searchsorted(rows, entries_of(chosen.selection.without(scored.bad), 0, recipe.seed))
    probe = None
    if influence is not None:
        probe = _probe(recipe, chosen, rows, held_out, tell)
        if cost := influence.standalone_cost(signals, entries, seed=recipe.seed):
            tell(cost)
    start = time.perf_counter()
    epoch_order = order.order(signals, entries, probe=probe, epoch=0, seed=recipe.seed)
    epoch_order = replace(epoch_order, indices=rows[epoch_order.indices])
    took = {"signals": scored.seconds, "ordering": time.perf_counter() - start}
    on_first(lambda: _write(recipe, order, folder, chosen, epoch_order, took, text=text, tell=tell))
    return epoch_order


def _held_out(recipe: Recipe, *, progress: bool) -> Pool:
    _, data = sections(recipe)
    if data.validation is None:
        raise RecipeError(
            "order.target: validation needs validation data, and none are given; give data.validation, or "
            "target: pool."
        )
    assert recipe.model is not None
    return load(data, "validation", load_tokenizer(recipe.model), progress=progress and is_first())


def _probe(
    recipe: Recipe, chosen: Selected, rows: NDArray[np.int64], held_out: Pool | None, tell: Tell
) -> Probe:
    """Trial steps on the recipe's model, with a fresh optimizer at the run's peak learning rate."""
    assert recipe.data is not None
    if held_out is not None and (shared := overlap(chosen.pool, held_out)):
        tell(
            f"Warning: {shared} of {len(held_out)} validation samples also occur in the training data, whose "
            "order is meant to help them. Remove them from one."
        )
    proxied = recipe.signals.model is not None
    model = chosen.model
    if model is None or proxied:
        model = placed_model(replace(recipe, signals=replace(recipe.signals, model=None)))
    check_length(model, recipe.data.max_length)
    collate = Collator.for_tokenizer(chosen.context.tokenizer)
    for pool in (chosen.pool, held_out):
        if pool is not None:
            check_tokens(model, pool.dataset, collate)
    transformers.set_seed(recipe.seed)
    optimizer, clip = _optimizer(recipe, model, chosen.pool)
    return Probe(
        model,
        optimizer,
        chosen.pool.dataset.select(rows),
        collate,
        target=None if held_out is None else held_out.dataset,
        clip=clip,
        batch_tokens=recipe.signals.batch_tokens,
        autocast=autocast_of(recipe.train.arguments),
        seed=stream_seed(recipe.seed, "trial steps", 0),
    )


def _optimizer(recipe: Recipe, model: nn.Module, pool: Pool) -> tuple[Any, float]:
    """The optimizer that the Trainer makes of `train`, before its first step, and the norm it clips at."""
    assert recipe.data is not None
    # The Trainer makes the folder of its checkpoints, though there will be no checkpoint.
    with TemporaryFolder("order") as nowhere:
        arguments = training_arguments(
            recipe.train,
            output_dir=nowhere,
            seed=recipe.seed,
            ranks=world_size(),
            validation=recipe.data.validation is not None,
            bars=False,
        )
        if arguments.fsdp or arguments.deepspeed:
            raise RecipeError(
                "order: d3 makes trial steps, which a sharded model cannot do yet; take order: balanced."
            )
        try:
            # It insists on data where the recipe asks for evaluation, which nobody does here.
            trainer = transformers.Trainer(model=model, args=arguments, eval_dataset=pool.dataset)
            optimizer = trainer.create_optimizer()
        except (ValueError, ImportError) as error:
            raise RecipeError(f"train: {one_line(error, 400)}.") from None
    return optimizer, arguments.max_grad_norm


# ---- files -------------------------------------------------------------------------------------------------


def _write(
    recipe: Recipe,
    order: Orderer,
    folder: OwnedFolder,
    chosen: Selected,
    epoch_order: Order,
    took: dict[str, float],
    *,
    text: bool,
    tell: Tell,
) -> None:
    out = folder.path
    columns = _columns(chosen, epoch_order)
    left_out: list[str] = []
    if text:
        records = list(records_of(sections(recipe)[1].train, chosen.pool, epoch_order.indices))
        record_columns, left_out = _record_columns(records, columns)
        columns |= record_columns
    if left_out:
        tell(
            f"Warning: {', '.join(left_out)} cannot be a column, since the records have values of different "
            f"types there, and {'is' if len(left_out) == 1 else 'are'} left out of {ORDERED}."
        )
    write_parquet(out / ORDERED, pyarrow.table(columns))
    if epoch_order.graph is not None and order.influence is not None:
        write_parquet(out / GRAPH, pyarrow.table(epoch_order.graph.columns(order.influence.threshold)))
    else:
        # The graph of an earlier order in this folder would be taken for the graph of this one.
        folder.remove(GRAPH)
    summary = _summary(recipe, order, chosen, epoch_order, took)
    write_json(out / SUMMARY, summary | ({"left_out": left_out} if left_out else {}))


def _columns(chosen: Selected, epoch_order: Order) -> dict[str, Any]:
    """Position, sample, unit, domain, origin and reason of every entry."""
    rows: Any = chosen.pool.dataset.select(epoch_order.indices)
    count = len(epoch_order.indices)
    units = epoch_order.units
    unit = pyarrow.nulls(count, pyarrow.int64()) if units is None else pyarrow.array(units)
    return {
        "position": pyarrow.array(np.arange(count)),
        "index": pyarrow.array(epoch_order.indices),
        "unit": unit,
        "domain": pyarrow.array(list(rows["domain"])),
        "origin": pyarrow.array(list(rows["origin"])),
        "why": pyarrow.array(list(reasons(epoch_order))),
    }


def _record_columns(records: list[dict[str, Any]], ours: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The records' columns, empty where a record lacks one; a column whose name is in `ours` with other
    values is called `record_...`. Also the names of columns whose values are of different types."""
    columns, left_out = {}, []
    for name in dict.fromkeys(name for record in records for name in record):
        try:
            values = pyarrow.array([record.get(name) for record in records])
        except (
            pyarrow.ArrowInvalid,
            pyarrow.ArrowTypeError,
            pyarrow.ArrowNotImplementedError,
            OverflowError,
        ):
            left_out.append(name)
            continue
        if name not in ours:
            columns[name] = values
        elif not values.equals(ours[name]):
            columns[f"record_{name}"] = values
    return columns, left_out


def _summary(
    recipe: Recipe, order: Orderer, chosen: Selected, epoch_order: Order, took: dict[str, float]
) -> dict[str, Any]:
    settings = chosen.context.recipe.to_dict()
    domain = chosen.context.train.domain
    assert domain is not None
    names, counts = np.unique(domain[epoch_order.indices], return_counts=True)
    influences = took["ordering"] if epoch_order.graph is not None else 0.0
    return {
        "order": replace(recipe, order=order).to_dict()["order"],
        "select": settings["select"],
        "seed": recipe.seed,
        "fingerprint": chosen.pool.fingerprint,
        "pool": len(chosen.pool),
        "ordered": len(epoch_order.indices),
        # Of the column `index` as int64, lowest byte first.
        "sha256": hashlib.sha256(epoch_order.indices.astype("<i8").tobytes()).hexdigest(),
        "domains": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "seconds_measuring": round(took["signals"] + influences, 3),
        **epoch_order.details,
        "objective": epoch_order.objective,
    }
