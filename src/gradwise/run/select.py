"""Selection by recipe: measure the pool, select, and write picks and records for other trainers."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.atomic import write_bytes, write_json
from gradwise.data import Collator, Data, Pool, load, overlap
from gradwise.data.read import read
from gradwise.errors import DataError, RecipeError
from gradwise.methods.decision import Selection
from gradwise.methods.grace import Grace
from gradwise.numerics.sampling import looked_at
from gradwise.planning.picks import write_picks
from gradwise.planning.pool import spread_over
from gradwise.recipe import Recipe
from gradwise.run.model import load_tokenizer
from gradwise.run.ranks import is_first
from gradwise.run.signals import Measures, into_store, placed_model, sections, what_measures
from gradwise.signals import Signals
from gradwise.signals.wanted import QUANTITIES

PICKS, RECORDS, SUMMARY = "picks.parquet", "records.jsonl", "selection.json"
SIGNALS, VALIDATION = "signals", "validation"
LOOKED = "looked.npy"
"""Beside the signals: which samples of the pool they are of, where not of all."""


def select_samples(
    recipe: Recipe, out: Path, *, text: bool = True, tell: Any = print, progress: bool = True
) -> Selection:
    """The selection that `gradwise train` would begin with, in files.

    But `select: grace` looks at all samples where `candidates` is not given, since there is no run whose
    `overhead` could bound it.

    `picks.parquet` says of each pick what it is and why it is there, `records.jsonl` holds the records
    themselves in the order picked, `selection.json` tells of the whole; what was measured stays in `signals`,
    and an interrupted pass goes on there.

    Args:
        recipe: with `model`, `data` and `select`.
        out: the folder.
        text: write the picked records and the beginnings of their texts.
        tell: gets a sentence on each stage.
        progress: show bars.

    Raises:
        GradwiseError: in one clear sentence.
    """
    _, data = sections(recipe)
    tokenizer = load_tokenizer(recipe.model or sections(recipe)[0])
    pool = load(data, "train", tokenizer, progress=progress and is_first())
    tell(str(pool.report))
    if isinstance(recipe.select, Grace) and recipe.select.candidates is None:
        tell(
            "grace looks at all samples here; a run looks at as many as its overhead affords. Give "
            "select.candidates to have both alike."
        )
    known = _known(pool)
    looked = _looked(recipe, known)
    signals = known if looked is None else known.take(looked)
    wanted = sorted(recipe.select.needs & set(QUANTITIES))
    if wanted:
        measures = what_measures(recipe, pool, tokenizer, progress=progress)
        if looked is not None:
            measures = measures._replace(samples=measures.samples.select(looked))
        found = into_store(recipe, measures, out / SIGNALS, want=wanted, tell=tell, progress=progress)
        signals = replace(found, num_tokens=signals.num_tokens, domain=signals.domain, weight=signals.weight)
    selection = _selected(recipe, known, signals, looked)
    if not is_first():
        return selection
    _write(recipe, out, pool, selection, tokenizer, text=text)
    _write_looked(out, looked)
    by = recipe.to_dict()["select"]
    write_json(out / SUMMARY, _summary({"select": by}, recipe, pool, known, signals.seconds, selection))
    return selection


def select_finish(
    recipe: Recipe, out: Path, *, text: bool = True, tell: Any = print, progress: bool = True
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
    settings, data = sections(recipe)
    tokenizer = load_tokenizer(settings)
    pool = load(data, "train", tokenizer, progress=progress and is_first())
    tell(str(pool.report))
    known = _known(pool)
    if phase.tokens is None:
        phase.budget(len(known))  # refused before anything is measured
    rows = None
    if phase.candidates is not None and phase.candidates < len(known):
        rows = looked_at(len(known), phase.candidates, known.domain, recipe.seed)
    signals = known if rows is None else known.take(rows)
    validation = None
    wanted = sorted((phase.needs | phase.validation_needs) & set(QUANTITIES))
    if wanted:
        measures = Measures(placed_model(recipe), pool.dataset, Collator.for_tokenizer(tokenizer))
        if phase.validation_needs:
            held_out = _validating(recipe, pool, tokenizer, tell=tell, progress=progress)
            validation = into_store(
                recipe, measures._replace(samples=held_out), out / VALIDATION, want=wanted, tell=tell,
                progress=progress,
            )  # fmt: skip
        some: Any = pool.dataset if rows is None else pool.dataset.select(rows)
        found = into_store(
            recipe, measures._replace(samples=some), out / SIGNALS, want=wanted, tell=tell, progress=progress
        )
        signals = replace(found, num_tokens=signals.num_tokens, domain=signals.domain, weight=signals.weight)
    selection = phase.select(signals, validation=validation, seed=recipe.seed)
    if rows is not None:
        selection = replace(selection, indices=rows[selection.indices])
    if is_first():
        _write(recipe, out, pool, selection, tokenizer, text=text)
        _write_looked(out, rows)
        by = recipe.to_dict()["anneal"]
        write_json(out / SUMMARY, _summary({"anneal": by}, recipe, pool, known, signals.seconds, selection))
    return selection


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
    recipe: Recipe, out: Path, pool: Pool, selection: Selection, tokenizer: Any, *, text: bool
) -> None:
    """Picks and records."""
    out.mkdir(parents=True, exist_ok=True)
    write_picks(out / PICKS, selection, pool.dataset, tokenizer if text else None)
    if text:
        origins, data = _origins(pool, selection), sections(recipe)[1]
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in _records(data, origins)]
        write_bytes(out / RECORDS, "".join(f"{line}\n" for line in lines).encode())
    else:
        (out / RECORDS).unlink(missing_ok=True)


def _write_looked(out: Path, looked: NDArray[np.int64] | None) -> None:
    if looked is not None and (out / SIGNALS).is_dir():
        content = io.BytesIO()
        np.save(content, looked)
        write_bytes(out / SIGNALS / LOOKED, content.getvalue())


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


def _origins(pool: Pool, selection: Selection) -> list[tuple[str, str]]:
    chosen: Any = pool.dataset.select(selection.indices)
    return list(zip(chosen["domain"], chosen["origin"], strict=True))


def _records(data: Data, origins: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """The records as their sources have them, in the order picked; of a large pool only those are kept."""
    wanted = {origin for _, origin in origins}
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for source in data.train if isinstance(data.train, list) else [data.train]:
        for part in read(source):  # type: ignore[arg-type]
            for record in part.records():
                if str(record.origin) in wanted:
                    domain = getattr(source, "domain", None) or part.name
                    found.setdefault(str(record.origin), []).append((domain, record.values))
    for domain, origin in origins:
        # Files of one name in several folders: their domains tell them apart, where they differ.
        same = [values for named, values in found[origin] if named == domain] or [found[origin][0][1]]
        if len(same) > 1:
            raise DataError(
                f"Two records of the data are {origin} of the domain {domain!r}; give the files different "
                "names, or the sources domains."
            )
        yield same[0]


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
