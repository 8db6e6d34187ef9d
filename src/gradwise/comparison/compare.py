"""A comparison from beginning to end: check, measure speeds, run, report. It resumes at any point."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradwise.atomic import TEMPORARY, write_text
from gradwise.comparison.arms import Arm, parse_arms, takes_size
from gradwise.comparison.budget import Budget, parse_budget
from gradwise.comparison.equal import equalise
from gradwise.comparison.folder import ComparisonFolder
from gradwise.comparison.pairs import Pairs
from gradwise.comparison.progress import ComparisonProgress
from gradwise.comparison.runs import FAILURE, LOG, is_done, prepare_folder, run_recipe
from gradwise.comparison.workers import Task, WorkerPool, start_server
from gradwise.errors import DataError, RecipeError
from gradwise.recipe import Recipe
from gradwise.report.reading import HELD_OUT_LOSS, Results, read_results
from gradwise.report.tables import write_report
from gradwise.run.model import measures, pinned
from gradwise.text import shown

RUN = "gradwise.comparison.runs:run"
CHECK_DATA = "gradwise.comparison.workbench:check_data"

DEFAULT_REFERENCE = "random"

MOST_SEEDS = 1000

LARGEST_OVERLAP = 0.01
"""Share of held-out samples in the training data up to which a comparison goes ahead, with a note."""


@dataclass(frozen=True)
class ComparisonOutcome:
    """What a comparison came to."""

    folder: Path
    results: Results
    table: str
    """The verdicts, as text."""
    failed: dict[str, str]
    """Why, by `arm` or `arm/seed-n`."""
    stopped: bool = False
    """Whether it was asked to stop and can resume."""


@dataclass(frozen=True)
class Options:
    """Settings of the comparison that change nothing that a run computes."""

    jobs: int = 1
    keep_checkpoints: bool = False
    discard_models: bool = False
    allow_overlap: bool = False
    progress: bool | None = None


def compare(
    recipe: Recipe,
    arms: Sequence[str],
    *,
    seeds: int | Sequence[int] = 5,
    budget: str | Budget = "steps",
    out: str | Path,
    reference: str | None = None,
    pairs: Pairs = (),
    metric: str = HELD_OUT_LOSS,
    fraction: float | None = None,
    jobs: int = 1,
    keep_checkpoints: bool = False,
    discard_models: bool = False,
    allow_overlap: bool = False,
    progress: bool | None = None,
) -> ComparisonOutcome:
    """Train every arm with every seed at equal cost, and judge them against the reference.

    Processes are started as multiprocessing does: a script that calls this wants `if __name__ == "__main__"`.

    Args:
        recipe: what the arms are changes of; with model, data.train and data.validation.
        arms: such as `full`, `loss_top+lisa` or `other.yaml`; see `gradwise.comparison.arms`.
        seeds: how many, from the recipe's own on, or which.
        budget: `steps`, `tokens` or `time`, with an amount or without; see `parse_budget`.
        out: folder; a comparison in it is resumed, and may get more arms and seeds.
        reference: the arm that all others are compared with. If unset, it is `random` if that is an arm,
            else the first, and an arm that differs from `full` in fewer sections is compared with `full`.
        pairs: further arms to compare, each with the one that it is compared with.
        metric: what the first table is about.
        fraction: size of selections, in place of the recipe's own.
        jobs: runs at once.
        keep_checkpoints: leave those of finished runs.
        discard_models: delete final weights once they are scored.
        allow_overlap: go ahead although held-out samples stand in the training data.
        progress: show a bar; by default when standard error is a terminal.

    Returns:
        The outcome. Runs that fail are named there and take nothing else down.

    Raises:
        RecipeError: for what cannot be compared, before anything is run.
    """
    _check_alone()
    folder = ComparisonFolder(out)
    recipe = recipe.anchored()
    _check_recipe(recipe, metric)
    parsed = parse_arms(list(arms), recipe, fraction=fraction)
    proxy = any(measures(arm.recipe) for arm in parsed)
    recipe = pinned(recipe, folder.recipe(), proxy=proxy)
    # Arms with the recipe's model share its commit; those with another get one of their own.
    parsed = [replace(arm, recipe=pinned(arm.recipe, recipe, proxy=proxy)) for arm in parsed]
    if not parsed:
        raise RecipeError("--arms names no arm; give some, such as full,random.")
    if fraction is not None and not any(takes_size(arm, fraction) for arm in parsed):
        raise RecipeError(
            "--fraction is the size of presets that select a part of the data, and no arm is one; leave it "
            "out."
        )
    for arm in parsed:
        _check_arm(arm)
    wanted = parse_budget(budget) if isinstance(budget, str) else budget
    if jobs < 1:
        raise RecipeError(f"--jobs must be at least 1; found {jobs}.")
    chosen = _seeds(seeds, recipe)
    options = Options(jobs, keep_checkpoints, discard_models, allow_overlap, progress)
    pool = WorkerPool(jobs)
    with folder.opened():
        compared_with = _reference(folder, parsed, reference)
        if reference is not None:
            pairs = [*pairs, *((arm.name, reference) for arm in parsed if arm.name != reference)]
        folder.extend(recipe, parsed, chosen, compared_with, wanted, pairs)
        if fraction is not None:
            folder.contents["fraction"] = fraction
        # Seed by seed over all arms: a comparison that is stopped early is still paired.
        todo = [(arm, seed) for seed in chosen for arm in parsed if not is_done(folder.run(arm.name, seed))]
        # Nothing is started where all runs are done: the same command then only writes the report again.
        stopped = bool(todo) and _run_all(folder, parsed, todo, pool, options)
        return _report(folder, metric, stopped=stopped, changed=bool(todo))


def _check_alone() -> None:
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        raise RecipeError(
            "gradwise compare starts its own processes and was itself started by torchrun; start it once, "
            "with --jobs for several runs at once."
        )


def _check_recipe(recipe: Recipe, metric: str) -> None:
    if recipe.model is None or recipe.data is None or recipe.data.train is None:
        missing = "model" if recipe.model is None else "data.train"
        raise RecipeError(f"The recipe names no {missing}; give it.")
    metric_names = [HELD_OUT_LOSS] if recipe.data.validation or recipe.data.target else []
    metric_names += recipe.metrics.names
    if not metric_names:
        raise RecipeError(
            "There is nothing to compare by: the recipe has neither data.validation nor metrics; give one."
        )
    if metric == HELD_OUT_LOSS and metric not in metric_names:
        return  # asked for by default: the first of the recipe's own then comes first
    if metric.split("/")[0] not in metric_names:
        raise RecipeError(f"--metric: unknown metric {shown(metric)}; known: {', '.join(metric_names)}.")


def _check_arm(arm: Arm) -> None:
    train = arm.recipe.train
    if train.early_stopping_patience is not None:
        raise RecipeError(
            "train.early_stopping_patience would give arms different lengths; leave it out of a comparison."
        )
    if train.arguments.get("push_to_hub"):
        raise RecipeError(
            "train.push_to_hub would upload the model of every run to one repository; leave it out of a "
            "comparison."
        )


def _reference(folder: ComparisonFolder, arms: list[Arm], requested: str | None) -> str:
    """What was asked for, or what the folder has, or the default."""
    names = list(dict.fromkeys([*folder.contents.get("arms", {}), *(arm.name for arm in arms)]))
    if requested is None:
        default = DEFAULT_REFERENCE if DEFAULT_REFERENCE in names else names[0]
        return folder.contents.get("reference", default)
    if requested not in names:
        raise RecipeError(f"--reference: {shown(requested)} is none of the arms; found {', '.join(names)}.")
    return requested


def _seeds(requested: int | Sequence[int], recipe: Recipe) -> list[int]:
    if isinstance(requested, int):
        seeds = list(range(recipe.seed, recipe.seed + min(requested, MOST_SEEDS + 1)))
    else:
        seeds = list(requested)
    if not 0 < len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise RecipeError(
            f"--seeds takes a number such as 5, or a list of different seeds such as 0,3,7; found "
            f"{shown(requested)}."
        )
    if min(seeds) < 0 or max(seeds) >= 2**32:
        raise RecipeError(f"--seeds: seeds lie between 0 and {2**32 - 1}; found {shown(requested)}.")
    return seeds


def _run_all(
    folder: ComparisonFolder, arms: list[Arm], todo: list[tuple[Arm, int]], pool: WorkerPool, options: Options
) -> bool:
    """Make what is to be made; whether any of it was stopped."""
    # Before anything else: all runs are forked from this server, whose imports take seconds.
    start_server()
    shown = ComparisonProgress(sys.stderr.isatty() if options.progress is None else options.progress)
    _check_data(folder, arms, pool, options, shown)
    if not pool.stops:
        equalise(folder, arms, pool, shown)
    folder.save()
    # Without steps, the measuring of an arm has failed, which the report tells.
    ready = [(arm, seed) for arm, seed in todo if folder.steps(arm.name, seed) is not None]
    stopped = False
    with shown.runs(len(ready)):
        for result in pool.run(_tasks(folder, ready, options), shown.show_running):
            if result.failure is not None:
                # A file of its own: a report that is made later must say why a run is missing.
                write_text(result.task.log.with_name(FAILURE), result.failure + "\n")
            stopped = stopped or result.stopped
            shown.ended(result)
    return stopped or bool(pool.stops)


def _tasks(folder: ComparisonFolder, todo: list[tuple[Arm, int]], options: Options) -> Iterator[Task]:
    for arm, seed in todo:
        steps = folder.steps(arm.name, seed)
        assert steps is not None
        where, recipe = folder.run(arm.name, seed), run_recipe(arm.recipe, seed, steps)
        prepare_folder(where)
        arguments: dict[str, Any] = {
            "recipe": recipe,
            "folder": where,
            "shared": folder.signals,
            "keep_checkpoints": options.keep_checkpoints,
            "discard_model": options.discard_models,
        }
        yield Task(f"{arm.name}, seed {seed}", RUN, arguments, where / LOG)


def _check_data(
    folder: ComparisonFolder, arms: list[Arm], pool: WorkerPool, options: Options, shown: ComparisonProgress
) -> None:
    """Refuse to judge by held-out data that are trained on, or that are not the same for all runs."""
    data_by_name, checked = folder.contents["data"], set[str]()
    for arm in arms:
        changed = {"data", "model"} & folder.contents["arms"][arm.name]["changes"].keys()
        # Arms mostly share their data, which are read and compared once for all of them.
        name = arm.name if changed or arm.recipe.annealing_data is not None else "recipe"
        if name in checked or pool.stops:
            continue
        shown.say("Checking the data.")
        log = folder.path / f"{TEMPORARY}data.log"
        (result,) = pool.run([Task(f"data of {name}", CHECK_DATA, {"recipe": arm.recipe}, log)])
        if result.failure is not None:
            raise DataError(result.failure)
        if not result.stopped:
            now = result.value
            _check_share(now["shared"], now["held_out"], name, options)
            if folder.started:
                _check_unchanged(now, data_by_name.get(name, {}), name, folder.path)
            # What an attempt without a run found may have been mended since.
            others = {
                other: data
                for other, data in data_by_name.items()
                if other != name and (folder.started or other in checked)
            }
            _check_measured_alike(now, name, others)
            data_by_name[name] = now
            checked.add(name)


def _check_share(shared: int, held_out: int, name: str, options: Options) -> None:
    if shared <= LARGEST_OVERLAP * held_out or options.allow_overlap:
        return
    raise DataError(
        f"{shared} of {held_out} held-out samples also occur in the training data of the {name}, so "
        "that the lowest loss would be the best memory; take them out of one of the two, or go ahead with "
        "--allow-overlap."
    )


def _check_unchanged(now: dict[str, Any], before: dict[str, Any], name: str, path: Path) -> None:
    """Refuse another model or other data than those of the runs that are there."""
    whose = "the recipe" if name == "recipe" else name
    if now.get("model") != before.get("model", now.get("model")):
        raise DataError(
            f"The model of {whose} has changed since the runs in {path} were made; restore it, or give --out "
            "a new folder."
        )
    fingerprints = before.get("fingerprints", {})
    for part, fingerprint in now["fingerprints"].items():
        if fingerprints.get(part, fingerprint) != fingerprint:
            raise DataError(
                f"The {part} data of {whose} have changed since the runs in {path} were made; restore them, "
                "or give --out a new folder."
            )


def _check_measured_alike(now: dict[str, Any], name: str, others: dict[str, dict[str, Any]]) -> None:
    """Refuse arms that other samples or other tokens measure: such losses do not compare."""
    for other, before in others.items():
        if before["held_out"] != now["held_out"]:
            raise DataError(
                f"{now['held_out']} held-out samples would measure {name}, and {before['held_out']} would "
                f"measure {other}: those that choose or train are left out, and so are empty ones. Give all "
                "arms data.validation from which none is left out."
            )
        here, there = (each.get("fingerprints", {}).get("held-out") for each in (now, before))
        if here and there and here != there:
            raise DataError(
                f"The held-out samples have other tokens or labels for {name} than for {other}, so that "
                "their losses do not compare; give all arms the same data.max_length, data.loss_on, template "
                "and tokenizer."
            )


def _report(folder: ComparisonFolder, metric: str, *, stopped: bool, changed: bool) -> ComparisonOutcome:
    folder.contents["notes"] = [
        f"{counts['shared']} of {counts['held_out']} held-out samples also occur in the training data"
        + ("." if name == "recipe" else f" of the arm {name}.")
        for name, counts in folder.contents["data"].items()
        if counts["shared"]
    ]
    folder.save()
    results = read_results(folder.path)
    failed = dict(results.failed_arms) | {
        f"{run.arm}/seed-{run.seed}": run.failure for run in results.runs if run.failure is not None
    }
    table = write_report(results, folder.path, metric, draw=changed)
    return ComparisonOutcome(folder.path, results, table, failed, stopped)
