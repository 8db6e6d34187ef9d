"""`gradwise compare`: does it pay, at equal cost?"""

from pathlib import Path
from typing import Annotated

import typer

from gradwise.console import say


def compare(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    arms: Annotated[
        str,
        typer.Option(
            help="Variants to compare, separated by commas: names of methods (full, random, loss_top, lisa, "
            "grass, lora, ...), a+b for both at once, a YAML file of overrides, name=... for a name of your "
            "own, recipe for the recipe as it is."
        ),
    ],
    seeds: Annotated[
        str, typer.Option(help="Number of seeds, counted from the recipe's own, or a list such as 0,3,7.")
    ] = "5",
    budget: Annotated[
        str,
        typer.Option(
            help="Budget of every run: steps, tokens or time as the reference spends them under the "
            "recipe, or an amount: steps=200, tokens=1e6, time=600, time=10m."
        ),
    ] = "steps",
    out: Annotated[
        Path | None, typer.Option(help="Folder; if unset, comparisons/<name of the recipe>.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Arm that all others are compared with; if unset, random or the first, and full for orders, "
            "layer policies and adapters."
        ),
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Further arms to compare, such as grass:lisa,full:loss_top.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric of the first table.")] = "held_out_loss",
    fraction: Annotated[
        float | None, typer.Option(help="Share of the data that selections keep, instead of the recipe's.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 1,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Keep the checkpoints of finished runs.")
    ] = False,
    discard_models: Annotated[
        bool, typer.Option("--discard-models", help="Delete final weights once they are scored.")
    ] = False,
    allow_overlap: Annotated[
        bool,
        typer.Option(
            "--allow-overlap", help="Go ahead although held-out samples also occur in the training data."
        ),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a setting: --set train.batch_size=8. Repeatable."),
    ] = None,
) -> None:
    """Train several arms of a recipe at equal cost, over seeds, and say whether they differ.

    The same command resumes a comparison that was stopped, tries what failed again, and prints the table
    of one that is finished; arms and seeds can be added.
    """
    from gradwise.recipe import Recipe

    loaded = Recipe.load(recipe, set_)
    # Imported once the recipe is read, so that a mistake in it is reported without torch's seconds.
    from gradwise.comparison import compare as run_comparison

    outcome = run_comparison(
        loaded,
        [arm for arm in arms.split(",") if arm.strip()],
        seeds=_seeds(seeds),
        budget=budget,
        out=out or Path("comparisons") / recipe.stem,
        reference=reference,
        pairs=_pairs(pairs),
        metric=metric,
        fraction=fraction,
        jobs=jobs,
        keep_checkpoints=keep_checkpoints,
        discard_models=discard_models,
        allow_overlap=allow_overlap,
    )
    say(outcome.table)
    say(f"\n{outcome.folder}: results.csv, runs.csv (and .parquet), table.txt, loss_by_*.png")
    from gradwise.report.page.write import write_at_end

    write_at_end(outcome.folder, metric=metric)
    if outcome.stopped:
        say("Stopped; the same command resumes it.")
    if outcome.stopped or outcome.failed:
        raise typer.Exit(1)


def _pairs(text: str | None) -> list[tuple[str, str]]:
    from gradwise.errors import RecipeError

    pairs = []
    for part in (text or "").split(","):
        arm, colon, against = (piece.strip() for piece in part.partition(":"))
        if colon and arm and against:
            pairs.append((arm, against))
        elif text is not None:
            raise RecipeError(
                f"--pairs takes two arms each, such as grass:lisa,full:loss_top; found {text!r}."
            )
    return pairs


def _seeds(text: str) -> int | list[int]:
    from gradwise.errors import RecipeError

    try:
        seeds = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        seeds = []
    if not seeds:
        raise RecipeError(f"--seeds takes a number such as 5, or a list such as 0,3,7; found {text!r}.")
    # A comma makes a list: `3,` is the seed 3, and `3` are three seeds.
    return seeds if "," in text else seeds[0]
