"""Selection by recipe: measure the pool, select, and write picks and records for other trainers."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.atomic import write_json, write_text
from gradwise.console import say
from gradwise.data import Collator, Pool, load, overlap
from gradwise.data.parts import load_choosing, load_parts
from gradwise.data.settings import Goal, Sources
from gradwise.errors import RecipeError
from gradwise.folders import OwnedFolder, add_file, claimed
from gradwise.methods.annealer import Annealer
from gradwise.methods.decision import Selection
from gradwise.methods.trial.contenders import only_in_a_run
from gradwise.planning import RunContext, Samples, Scorer
from gradwise.planning.first_selection import (
    first_selection,
    match_pool_texts,
    settled_by_closeness,
    sized_for_run,
)
from gradwise.planning.phase import joined_selections, parts_of, scored_parts, select_parts
from gradwise.planning.picks import write_picks
from gradwise.planning.scoring import PoolSignals, pool_signals, selection_signals, validation_signals
from gradwise.precision import autocast_of
from gradwise.ranks import check_same, is_first, on_each, on_first
from gradwise.recipe import Model, Recipe
from gradwise.run.model import Tell, load_tokenizer
from gradwise.run.records import records_of
from gradwise.run.signals import joined, sections, what_measures
from gradwise.signals.request import QUANTITIES
from gradwise.signals.vocabulary import check_tokens
from gradwise.training.layout import packer
from gradwise.training.record import RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PICKS, RECORDS, SUMMARY = "picks.parquet", "records.jsonl", "selection.json"
SIGNALS, VALIDATION, TARGET = "signals", "validation", "target"
SCORED_ROWS = "looked.npy"
"""Beside the signals: positions of the samples that were scored, if not all were."""


def select_samples(
    recipe: Recipe, out: Path, *, text: bool = True, tell: Tell = say, progress: bool = True
) -> Selection:
    """The selection that `gradwise train` would begin with, in files. Raises GradwiseError.

    But `select: grace` scores all samples if `candidates` is unset, since there is no run whose `overhead`
    could bound it.

    `picks.parquet` says of each pick what it is and why it is there, `selection.json` summarises the
    selection; with `text`, `records.jsonl` holds the records themselves in the order picked. Signals stay in
    `signals`, and interrupted scoring resumes there.
    """
    with _claimed(recipe, out, text) as folder:
        chosen = choose(recipe, folder.path, tell=tell, progress=progress)
        selection, scored = chosen.selection, chosen.scored
        by = {"select": chosen.context.recipe.to_dict()["select"]}
        summary = _summary(by, chosen.context, chosen.pool, scored.seconds, selection)
        sources = sections(recipe)[1].train
        on_first(
            lambda: _write(
                chosen.context,
                folder,
                chosen.pool,
                selection,
                scored.rows,
                summary,
                sources if text else None,
            )
        )
    return selection


@contextmanager
def _claimed(recipe: Recipe, out: Path, text: bool) -> Iterator[OwnedFolder]:
    """The folder; refused before anything is read if it holds something else."""
    joined(recipe)
    # `joined` comes first: one rank claims the folder for all, which must be connected by then.
    names = (PICKS, SUMMARY, SIGNALS, VALIDATION, TARGET) + ((RECORDS,) if text else ())
    with claimed(out.expanduser(), "selection", names) as folder:
        yield folder


class Selected(NamedTuple):
    """A selection, and its inputs."""

    context: RunContext
    pool: Pool
    scored: PoolSignals
    model: Any
    """The model that computed signals; None if none were needed."""
    selection: Selection


def choose(
    recipe: Recipe, out: Path, *, more: frozenset[str] = frozenset(), tell: Tell, progress: bool
) -> Selected:
    """Score what `select` needs into a store below `out`, and select. `more` are signals that an order of the
    selection needs besides; if `select` itself needs no quantity, only the selected samples have them."""
    goal = recipe.goal
    recipe = replace(recipe, select=recipe.select.with_target(goal))
    if recipe.select.resolved() is None and getattr(recipe.select, "max_closeness", None) is None:
        raise only_in_a_run("select")
    pool, target, tokenizer = on_each(lambda: _parts(recipe, goal, tell, progress))
    check_same(pool.fingerprint, "The data")
    context = _context(
        recipe, out, pool, tokenizer, target=target, store=out / SIGNALS, tell=tell, progress=progress
    )
    context = _sized(context, pool)
    method: Any = context.recipe.select.resolved()
    count = len(pool)
    texts = match_pool_texts(context.recipe.select if method is None else method, context)
    if method is None:
        settled = settled_by_closeness(context, texts.match)
        if settled is None:
            raise only_in_a_run("select", "the pool is not known to be close to the target, and ")
        context, method = settled, settled.recipe.select.resolved()
    if advice := method.standalone_advice():
        tell(advice)
    match: Any = texts.match
    rows, selection = method.rows_to_score(count, context.train.domain, recipe.seed, match), None
    texts.recorded(context, rows)
    if rows is not None and more & set(QUANTITIES):
        raise RecipeError(
            f"order: {recipe.order.method} needs signals of all samples, and select.candidates scores "
            f"{len(rows):,} of {count:,}; give candidates: all."
        )
    if not method.needs & set(QUANTITIES) and more & set(QUANTITIES):
        # Select first, since the order needs signals of the selected samples alone.
        unscored = selection_signals(context, method.needs | {"num_tokens"})
        selection = first_selection(method, context, unscored, match=match).selection
        picked = np.unique(selection.indices)
        rows = picked if len(picked) < count else None
    if selection is None:
        scored = selection_signals(context, method.needs | {"num_tokens"}, rows, order_needs=more)
        selection = first_selection(method, context, scored, match=match).selection
    else:
        scored = pool_signals(context, method.needs | more | {"num_tokens"}, rows)
    if advice := method.advice(selection):
        tell(advice)
    measured = (method.needs | more) & set(QUANTITIES)
    return Selected(context, pool, scored, context.scorer().model if measured else None, selection)


def _sized(context: RunContext, pool: Pool) -> RunContext:
    """The context with as many picks as a run of this recipe selects."""
    recipe, data = context.recipe, sections(context.recipe)[1]
    return sized_for_run(
        context,
        steps=max(0, recipe.train.arguments.get("max_steps", 0)),
        rows=recipe.train.batch_size,
        last=None if recipe.anneal is None else recipe.anneal.last,
        pack=packer(pool.dataset, data.max_length) if data.packing else None,
    )


def _context(
    recipe: Recipe,
    out: Path,
    pool: Pool,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    target: Pool | None = None,
    store: Path,
    tell: Tell,
    progress: bool,
) -> RunContext:
    """The context of a recipe's decisions outside of a run; the model is loaded when signals are needed."""
    dataset: Any = pool.dataset
    samples = Samples(dataset, dataset, Collator.for_tokenizer(tokenizer))

    @cache
    def scorer() -> Scorer:
        measures = on_each(lambda: what_measures(recipe, pool, target, tokenizer, progress=progress))
        check_tokens(*measures[:3])
        return measures

    return RunContext(
        recipe=recipe,
        train=samples,
        scorer=scorer,
        record=RunRecord(out, writes=False),
        folder=out,
        proxied=recipe.signals.model is not None,
        target=None if target is None else Samples(target.dataset, target.dataset, samples.collate),
        learning_rate=recipe.train.learning_rate,
        tokenizer=tokenizer,
        autocast=autocast_of(recipe.train.arguments),
        store=store,
        progress=progress,
        say=tell,
        warn=lambda sentence: tell(f"Warning: {sentence}"),
    )


def _pool(recipe: Recipe, model: Model | None, tell: Tell, progress: bool) -> tuple[Pool, Any]:
    """The training data, and the tokenizer of `model`, or of the model that measures if that is None."""
    settings, data = sections(recipe)
    tokenizer = load_tokenizer(model or settings)
    pool = load(data, "train", tokenizer, progress=progress and is_first())
    tell(str(pool.report))
    return pool, tokenizer


def _parts(recipe: Recipe, goal: Goal | None, tell: Tell, progress: bool) -> tuple[Pool, Pool | None, Any]:
    """The training data, the target if `select` aims at one, and the tokenizer."""
    if goal is None:
        pool, tokenizer = _pool(recipe, recipe.model, tell, progress)
        return pool, None, tokenizer
    settings, data = sections(recipe)
    tokenizer = load_tokenizer(recipe.model or settings)
    parts = load_parts(data, tokenizer, goal=goal, progress=progress and is_first())
    for sentence in (str(parts.train.report), *parts.notes):
        tell(sentence)
    return parts.train, parts.target, tokenizer


def select_annealing(
    recipe: Recipe, out: Path, *, text: bool = True, tell: Tell = say, progress: bool = True
) -> Selection:
    """The samples that `anneal` would train on if the recipe's model were the one at the beginning of the
    phase. For people with their own trainer, who give the checkpoint from which the learning rate decays.

    Files and errors are those of `select_samples`; signals of the validation samples stay in `validation`.
    """
    phase = recipe.anneal
    if phase is None:
        raise RecipeError("The recipe has no `anneal`, so there is no annealing phase to select for.")
    if phase.contender_methods and phase.winner is None:  # type: ignore[attr-defined]
        raise only_in_a_run("anneal")
    if phase.pool == "selection":
        raise RecipeError("anneal.pool: selection is what a run has selected by then; give pool: all.")
    if phase.uses_optimizer:
        raise RecipeError("anneal.precondition needs the optimizer of a run; give precondition: false.")
    if recipe.signals.model is not None:
        raise RecipeError("anneal measures the model that trains; leave signals.model out.")
    with _claimed(recipe, out, text) as folder:
        pool, added, tokenizer = on_each(lambda: _phase_pool(recipe, phase, tell, progress))
        check_same(pool.fingerprint, "The data")
        training = np.arange(len(pool) - added)
        whole = parts_of(phase, training, len(training), added)
        if phase.tokens is None:
            for part in whole:
                phase.part(part.share).budget(len(part.rows))  # refused before anything is measured
        store = folder.path / SIGNALS
        context = _context(recipe, folder.path, pool, tokenizer, store=store, tell=tell, progress=progress)
        parts = scored_parts(phase, context.train, whole, recipe.seed)
        rows = np.concatenate([part.rows for part in parts])
        quantities = (phase.needs | phase.validation_needs) & set(QUANTITIES)
        validation = None
        if phase.validation_needs:
            held_out = on_each(
                lambda: _choosing(recipe, phase, pool, tokenizer, tell=tell, progress=progress)
            )
            context = replace(
                context,
                model=context.scorer().model,
                validation=Samples(held_out, held_out, context.train.collate),
                store=folder.path / VALIDATION,
            )
            # A store holds the signals of one data set, so the validation samples have one of their own.
            check_tokens(context.scorer().model, held_out, context.train.collate)
            validation = validation_signals(context, quantities, phase.validation_samples)
            context = replace(context, store=store)
        some = None if len(rows) == len(pool) else rows
        scored = pool_signals(context, quantities | {"num_tokens"}, some)
        selection = joined_selections(
            select_parts(phase, parts, scored.signals, validation=validation, room=None, seed=recipe.seed)
        )
        by = {"anneal": recipe.to_dict()["anneal"]}
        summary = _summary(by, context, pool, scored.seconds, selection)
        sources = _sources(recipe, phase) if text else None
        on_first(lambda: _write(context, folder, pool, selection, some, summary, sources))
    return selection


def _phase_pool(recipe: Recipe, phase: Annealer, tell: Tell, progress: bool) -> tuple[Pool, int, Any]:
    """The samples of the annealing phase, the number of those from its own files, and the tokenizer. The
    phase's own samples stand behind the training samples that it mixes them with."""
    if phase.data is None:
        pool, tokenizer = _pool(recipe, recipe.model, tell, progress)
        return pool, 0, tokenizer
    settings, data = sections(recipe)
    tokenizer = load_tokenizer(recipe.model or settings)
    shown = progress and is_first()
    phase_pool = load(data, "anneal", tokenizer, sources=phase.data, progress=shown)
    tell(f"Annealing phase: {phase_pool.report}")
    if phase.share in (None, 1):
        return phase_pool, len(phase_pool), tokenizer
    pool, _ = _pool(recipe, recipe.model, tell, progress)
    return pool.followed_by(phase_pool), len(phase_pool), tokenizer


def _sources(recipe: Recipe, phase: Annealer) -> Sources:
    """The sources of the pool of `_phase_pool`, in its order."""
    training = sections(recipe)[1].train
    if phase.data is None:
        return training
    if phase.share in (None, 1):
        return phase.data
    several = [each if isinstance(each, list) else [each] for each in (training, phase.data)]
    return [source for sources in several for source in sources if source is not None]


def _choosing(
    recipe: Recipe,
    phase: Annealer,
    pool: Pool,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tell: Tell,
    progress: bool,
) -> Any:
    """The samples that the method chooses by."""
    data = recipe.data
    assert data is not None
    samples = load_choosing(data, tokenizer, goal=recipe.goal, progress=progress and is_first())
    if samples is None:
        raise RecipeError(
            f"anneal: {phase.method} selects by the gradients of validation data, and none are given; give "
            "data.validation, or data.target."
        )
    if not (shared := overlap(pool, samples)):
        return samples.dataset
    if data.target is not None:
        tell(f"{shared} of {len(samples)} target samples also stand among the samples to choose from.")
    else:
        tell(
            f"Warning: {shared} of {len(samples)} validation samples also occur in the training data, and "
            f"{phase.method} will rank them highest. Remove them from one."
        )
    return samples.dataset


def _write(
    context: RunContext,
    folder: OwnedFolder,
    pool: Pool,
    selection: Selection,
    rows: NDArray[np.int64] | None,
    summary: dict[str, Any],
    sources: Sources,
) -> None:
    """Write picks, summary, the records if there are sources, and which samples the signals are of."""
    out = folder.path
    write_picks(out / PICKS, selection, pool.dataset, context.tokenizer if sources else None)
    if sources:
        records = records_of(sources, pool, selection.indices)
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in records]
        write_text(out / RECORDS, "".join(f"{line}\n" for line in lines))
    else:
        # Records of an earlier selection in this folder would stand beside other picks.
        folder.remove(RECORDS)
    if rows is not None and (out / SIGNALS).is_dir():
        content = io.BytesIO()
        np.save(content, rows)
        add_file(out / SIGNALS / SCORED_ROWS, content.getvalue())
    write_json(out / SUMMARY, summary)


def _summary(
    by: dict[str, Any], context: RunContext, pool: Pool, seconds: float, selection: Selection
) -> dict[str, Any]:
    domain = context.train.domain
    assert domain is not None
    names, counts = np.unique(domain, return_counts=True)
    picked = domain[selection.indices]
    return {
        **by,
        "seed": context.seed,
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
        **{key: value for key, value in selection.details.items() if key not in ("domains", "objective")},
    }
