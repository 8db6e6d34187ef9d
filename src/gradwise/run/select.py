"""Selection by recipe: measure the pool, select, and write picks and records for other trainers."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradwise.atomic import write_bytes, write_json
from gradwise.data import Collator, Data, Pool, load
from gradwise.data.read import read
from gradwise.errors import DataError, RecipeError
from gradwise.methods.decision import Selection
from gradwise.methods.grace import Grace
from gradwise.planning.picks import write_picks
from gradwise.recipe import Recipe
from gradwise.run.model import load_model, load_tokenizer
from gradwise.run.ranks import is_first
from gradwise.run.signals import load_proxy, placed, sections
from gradwise.signals import Signals, collect
from gradwise.signals.wanted import QUANTITIES

PICKS, RECORDS, SUMMARY, SIGNALS = "picks.parquet", "records.jsonl", "selection.json", "signals"
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
    data = _data(recipe)
    _, tokenizer, pool = _loaded(recipe, data, progress)
    tell(str(pool.report))
    if isinstance(recipe.select, Grace) and recipe.select.candidates is None:
        tell(
            "grace looks at all samples here; a run looks at as many as its overhead affords. Give "
            "select.candidates to have both alike."
        )
    signals = _measured(recipe, pool, tokenizer, out, tell=tell, progress=progress)
    selection = _selected(recipe, pool, signals)
    if not is_first():
        return selection
    out.mkdir(parents=True, exist_ok=True)
    write_picks(out / PICKS, selection, pool.dataset, tokenizer if text else None)
    if text:
        origins = _origins(pool, selection)
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in _records(data, origins)]
        write_bytes(out / RECORDS, "".join(f"{line}\n" for line in lines).encode())
    else:
        (out / RECORDS).unlink(missing_ok=True)
    write_json(out / SUMMARY, _summary(recipe, pool, signals, selection))
    return selection


def _data(recipe: Recipe) -> Data:
    if recipe.data is None:
        raise RecipeError("The recipe names no data; give data.train.")
    return recipe.data


def _loaded(recipe: Recipe, data: Data, progress: bool) -> tuple[Any, Any, Pool]:
    model = recipe.model or sections(recipe)[0]
    tokenizer = load_tokenizer(model)
    return model, tokenizer, load(data, "train", tokenizer, progress=progress and is_first())


def _measured(recipe: Recipe, pool: Pool, tokenizer: Any, out: Path, *, tell: Any, progress: bool) -> Signals:
    """What the selection needs, with what is known of the data without measuring."""
    dataset: Any = pool.dataset
    known: dict[str, Any] = {
        "num_tokens": pool.label_tokens,
        "domain": np.array(dataset["domain"]).astype(str),
        "weight": np.array(dataset["weight"], dtype=np.float64),
    }
    wanted = sorted(recipe.select.needs & set(QUANTITIES))
    if not wanted:
        return Signals(len(dataset), **known)
    proxy = load_proxy(recipe, pool, progress=progress)
    if proxy is not None:
        model, samples, collate = proxy
    else:
        model = placed(load_model(sections(recipe)[0], recipe.adapter))
        samples, collate = dataset, Collator.for_tokenizer(tokenizer)
    if (looked := _looked(recipe, known["domain"])) is not None:
        samples, known = samples.select(looked), {name: values[looked] for name, values in known.items()}
    measured = collect(
        model,
        samples,
        collate,
        want=wanted,  # type: ignore[arg-type]
        parameters=recipe.signals.parameters,
        grad_dim=recipe.signals.grad_dim,
        grad_dtype=recipe.signals.grad_dtype,
        batch_tokens=recipe.signals.batch_tokens,
        store=out / SIGNALS,
        seed=recipe.seed,
        progress=progress,
        tell=lambda sentence: tell(f"Warning: {sentence}"),
    )
    if looked is not None and is_first():
        content = io.BytesIO()
        np.save(content, looked)
        write_bytes(out / SIGNALS / LOOKED, content.getvalue())
    return replace(measured, **known)


def _looked(recipe: Recipe, domain: Any) -> Any:
    select = recipe.select
    return select.looked(len(domain), domain, recipe.seed) if isinstance(select, Grace) else None


def _selected(recipe: Recipe, pool: Pool, signals: Signals) -> Selection:
    dataset: Any = pool.dataset
    domain = np.array(dataset["domain"]).astype(str)
    looked = _looked(recipe, domain)
    if looked is None:
        return recipe.select.select(signals, seed=recipe.seed)
    assert isinstance(recipe.select, Grace)
    weight = np.array(dataset["weight"], dtype=np.float64)
    whole = Signals(len(pool), num_tokens=pool.label_tokens, domain=domain, weight=weight)
    state = recipe.select.begin(signals, looked=looked, pool=len(pool), seed=recipe.seed)
    return recipe.select.pick(state, whole, seed=recipe.seed)


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


def _summary(recipe: Recipe, pool: Pool, signals: Signals, selection: Selection) -> dict[str, Any]:
    domain = np.array(pool.dataset["domain"]).astype(str)  # type: ignore[call-overload]
    names, counts = np.unique(domain, return_counts=True)
    picked = domain[selection.indices]
    return {
        "select": recipe.to_dict()["select"],
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
        "seconds_measuring": round(signals.seconds, 3),
        **{key: value for key, value in selection.told.items() if key not in ("domains", "objective")},
    }
