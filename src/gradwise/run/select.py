"""Selection by recipe: measure the pool, select, and write picks and records for other trainers."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.atomic import write_json, write_text
from gradwise.console import say
from gradwise.data import Collator, Pool, load, overlap
from gradwise.errors import RecipeError
from gradwise.folders import OwnedFolder, add_file, claimed
from gradwise.methods.decision import Selection
from gradwise.methods.grace import Grace
from gradwise.numerics.sampling import stratified_sample
from gradwise.planning.picks import write_picks
from gradwise.planning.pool import spread_over
from gradwise.ranks import check_same, is_first, on_each, on_first
from gradwise.recipe import Model, Recipe
from gradwise.run.model import load_tokenizer
from gradwise.run.records import records_of
from gradwise.run.signals import Measures, into_store, joined, placed_model, sections, what_measures
from gradwise.signals import Signals
from gradwise.signals.wanted import QUANTITIES

PICKS, RECORDS, SUMMARY = "picks.parquet", "records.jsonl", "selection.json"
SIGNALS, VALIDATION = "signals", "validation"
LOOKED = "looked.npy"
"""Beside the signals: which samples of the pool they are of, where not of all."""


def select_samples(
    recipe: Recipe, out: Path, *, text: bool = True, tell: Any = say, progress: bool = True
) -> Selection:
    """The selection that `gradwise train` would begin with, in files.

    But `select: grace` looks at all samples where `candidates` is not given, since there is no run whose
    `overhead` could bound it.

    `picks.parquet` says of each pick what it is and why it is there, `records.jsonl` holds the records
    themselves in the order picked, `selection.json` tells of the whole; what was measured stays in `signals`,
    and interrupted scoring resumes there.

    Args:
        recipe: with `model`, `data` and `select`.
        out: the folder.
        text: write the picked records and the beginnings of their texts.
        tell: gets a sentence on each stage.
        progress: show bars.

    Raises:
        GradwiseError: in one clear sentence.
    """
    with _claimed(recipe, out, text) as folder:
        chosen = choose(recipe, folder.path, tell=tell, progress=progress)
        selection = chosen.selection
        by, seconds = {"select": recipe.to_dict()["select"]}, chosen.signals.seconds
        summary = _summary(by, recipe, chosen.pool, chosen.known, seconds, selection)
        pool, tokenizer, rows = chosen.pool, chosen.tokenizer, chosen.rows
        on_first(lambda: _write(recipe, folder, pool, selection, tokenizer, rows, summary, text=text))
    return selection


@contextmanager
def _claimed(recipe: Recipe, out: Path, text: bool) -> Iterator[OwnedFolder]:
    """The folder, refused before anything is read where it holds something else."""
    joined(recipe)
    names = (PICKS, SUMMARY, SIGNALS, VALIDATION) + ((RECORDS,) if text else ())
    with claimed(out.expanduser(), "selection", names) as folder:
        yield folder


class Chosen(NamedTuple):
    """A selection, and what it was made of."""

    pool: Pool
    tokenizer: Any
    known: Signals
    """What is known of the whole pool without a model: label tokens, domains and weights."""
    signals: Signals
    """Measured signals of `rows`."""
    rows: NDArray[np.int64] | None
    """The samples that `signals` are of, ascending; None for the whole pool."""
    model: Any
    """What measured, where anything was."""
    selection: Selection


def choose(
    recipe: Recipe, out: Path, *, more: frozenset[str] = frozenset(), tell: Any, progress: bool
) -> Chosen:
    """Measure what `select` needs into a store below `out`, and select.

    Args:
        recipe, out, tell, progress: as in `select_samples`.
        more: quantities to measure of the selection besides, in the same pass; where `select` itself needs
            none, of the selected samples alone.

    Raises:
        GradwiseError: in one clear sentence.
    """
    pool, tokenizer = on_each(lambda: _pool(recipe, recipe.model, tell, progress))
    check_same(pool.fingerprint, "The data")
    if isinstance(recipe.select, Grace) and recipe.select.candidates is None:
        tell(
            "grace looks at all samples here; a run looks at as many as its overhead affords. Give "
            "select.candidates to have both alike."
        )
    known = _known(pool)
    rows, selection = _looked(recipe, known), None
    if rows is not None and more & set(QUANTITIES):
        raise RecipeError(
            f"order: {recipe.order.method} has to know all samples, and select.candidates looks at "
            f"{len(rows):,} of {len(pool):,}; give candidates: all."
        )
    own = recipe.select.needs & set(QUANTITIES)
    wanted = sorted(own | (more & set(QUANTITIES)))
    if not own:
        selection = _selected(recipe, known, known, rows)
        picked = np.unique(selection.indices)
        rows = picked if wanted and len(picked) < len(known) else rows
    signals, model = known if rows is None else known.take(rows), None
    if wanted:
        measures = on_each(lambda: what_measures(recipe, pool, tokenizer, progress=progress))
        if rows is not None:
            measures = measures._replace(samples=measures.samples.select(rows))
        found = into_store(recipe, measures, out / SIGNALS, want=wanted, tell=tell, progress=progress)
        signals = replace(found, num_tokens=signals.num_tokens, domain=signals.domain, weight=signals.weight)
        model = measures.model
    if selection is None:
        selection = _selected(recipe, known, signals, rows)
    if isinstance(recipe.select, Grace) and (said := recipe.select.random_picks(selection)):
        tell(said)
    return Chosen(pool, tokenizer, known, signals, rows, model, selection)


def _pool(recipe: Recipe, model: Model | None, tell: Any, progress: bool) -> tuple[Pool, Any]:
    """The training data, and the tokenizer of `model` or of what measures."""
    settings, data = sections(recipe)
    tokenizer = load_tokenizer(model or settings)
    pool = load(data, "train", tokenizer, progress=progress and is_first())
    tell(str(pool.report))
    return pool, tokenizer


def select_finish(
    recipe: Recipe, out: Path, *, text: bool = True, tell: Any = say, progress: bool = True
) -> Selection:
    """What `anneal` would train on in the last phase, were the recipe's model the one at its beginning: for
    people with their own trainer, who give the checkpoint from which the learning rate decays.

    Files and errors are those of `select_samples`; what the validation samples gave stays in `validation`.
    """
    phase: Any = recipe.anneal
    if phase is None:
        raise RecipeError("The recipe has no `anneal`, so there is no last phase to select for.")
    if phase.pool == "selection":
        raise RecipeError("anneal.pool: selection is what a run has selected by then; give pool: all.")
    if getattr(phase, "precondition", False):
        raise RecipeError("anneal.precondition needs the optimizer of a run; give precondition: false.")
    if recipe.signals.model is not None:
        raise RecipeError("anneal measures the model that trains; leave signals.model out.")
    with _claimed(recipe, out, text) as folder:
        pool, tokenizer = on_each(lambda: _pool(recipe, recipe.model, tell, progress))
        check_same(pool.fingerprint, "The data")
        known = _known(pool)
        if phase.tokens is None:
            phase.budget(len(known))  # refused before anything is measured
        rows = None
        if phase.candidates is not None and phase.candidates < len(known):
            rows = stratified_sample(len(known), phase.candidates, known.domain, recipe.seed)
        keep = partial(into_store, recipe, tell=tell, progress=progress)
        signals, validation = _finish_signals(recipe, folder.path, pool, tokenizer, known, rows, keep)
        selection = phase.select(signals, validation=validation, seed=recipe.seed)
        if rows is not None:
            selection = replace(selection, indices=rows[selection.indices])
        by = {"anneal": recipe.to_dict()["anneal"]}
        summary = _summary(by, recipe, pool, known, signals.seconds, selection)
        on_first(lambda: _write(recipe, folder, pool, selection, tokenizer, rows, summary, text=text))
    return selection


def _finish_signals(
    recipe: Recipe,
    out: Path,
    pool: Pool,
    tokenizer: Any,
    known: Signals,
    rows: NDArray[np.int64] | None,
    keep: partial[Signals],
) -> tuple[Signals, Signals | None]:
    """Signals of the samples of `rows` and of the validation samples, as far as `anneal` needs them.

    `keep` measures into a store.
    """
    phase: Any = recipe.anneal
    signals, validation = known if rows is None else known.take(rows), None
    wanted = sorted((phase.needs | phase.validation_needs) & set(QUANTITIES))
    if not wanted:
        return signals, None
    collate = Collator.for_tokenizer(tokenizer)
    measures = on_each(lambda: Measures(placed_model(recipe), pool.dataset, collate))
    if phase.validation_needs:
        held_out = on_each(lambda: _validating(recipe, pool, tokenizer, **keep.keywords))
        validation = keep(measures._replace(samples=held_out), out / VALIDATION, want=wanted)
    some: Any = pool.dataset if rows is None else pool.dataset.select(rows)
    found = keep(measures._replace(samples=some), out / SIGNALS, want=wanted)
    told = {name: getattr(signals, name) for name in ("num_tokens", "domain", "weight")}
    return replace(found, **told), validation


def _validating(recipe: Recipe, pool: Pool, tokenizer: Any, *, tell: Any, progress: bool) -> Any:
    """The validation samples to measure."""
    data, phase = recipe.data, recipe.anneal
    assert data is not None and phase is not None
    if data.validation is None:
        raise RecipeError(
            f"anneal: {phase.method} selects by the gradients of validation data, and there are none; give "
            "data.validation."
        )
    held_out = load(data, "validation", tokenizer, progress=progress and is_first())
    if shared := overlap(pool, held_out):
        tell(
            f"Warning: {shared} of {len(held_out)} validation samples also stand in the training data, and "
            f"{phase.method} will find them best. Take them out of one."
        )
    return spread_over(held_out.dataset, phase.validation_samples)


def _write(
    recipe: Recipe,
    folder: OwnedFolder,
    pool: Pool,
    selection: Selection,
    tokenizer: Any,
    rows: NDArray[np.int64] | None,
    summary: dict[str, Any],
    *,
    text: bool,
) -> None:
    """Picks, records and summary; and beside the signals, which samples they are of."""
    out = folder.path
    write_picks(out / PICKS, selection, pool.dataset, tokenizer if text else None)
    if text:
        records = records_of(sections(recipe)[1], pool, selection.indices)
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in records]
        write_text(out / RECORDS, "".join(f"{line}\n" for line in lines))
    else:
        folder.remove(RECORDS)
    if rows is not None and (out / SIGNALS).is_dir():
        content = io.BytesIO()
        np.save(content, rows)
        add_file(out / SIGNALS / LOOKED, content.getvalue())
    write_json(out / SUMMARY, summary)


def _known(pool: Pool) -> Signals:
    """What is known of the samples without measuring."""
    dataset: Any = pool.dataset
    return Signals(
        len(dataset),
        num_tokens=pool.label_tokens,
        domain=np.array(dataset["domain"]).astype(str),
        weight=np.array(dataset["weight"], dtype=np.float64),
    )


def _looked(recipe: Recipe, known: Signals) -> NDArray[np.int64] | None:
    select = recipe.select
    return select.looked(len(known), known.domain, recipe.seed) if isinstance(select, Grace) else None


def _selected(
    recipe: Recipe, known: Signals, signals: Signals, looked: NDArray[np.int64] | None
) -> Selection:
    if looked is None:
        return recipe.select.select(signals, seed=recipe.seed)
    assert isinstance(recipe.select, Grace)
    state = recipe.select.begin(signals, looked=looked, pool=len(known), seed=recipe.seed)
    return recipe.select.pick(state, known, seed=recipe.seed)


def _summary(
    by: dict[str, Any], recipe: Recipe, pool: Pool, known: Signals, seconds: float, selection: Selection
) -> dict[str, Any]:
    domain = known.require("domain", "select")
    names, counts = np.unique(domain, return_counts=True)
    picked = domain[selection.indices]
    return {
        **by,
        "seed": recipe.seed,
        "fingerprint": pool.fingerprint,
        "pool": len(pool),
        "picked": len(selection.indices),
        "label_tokens": int(pool.label_tokens[selection.indices].sum()),
        "domains": {
            str(name): {"pool": int(count), "picked": int((picked == name).sum())}
            for name, count in zip(names, counts, strict=True)
        },
        "objective": selection.objective,
        "seconds_measuring": round(seconds, 3),
        **{key: value for key, value in selection.told.items() if key not in ("domains", "objective")},
    }
