"""`gradwise select`: the selection that a run would begin with, for people with their own trainer."""

from pathlib import Path
from typing import Annotated

import typer


def select(
    recipe: Annotated[
        Path, typer.Argument(help="The recipe, a YAML file; its model, data, signals and select count.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder; selections/<name of the recipe> unless given.")
    ] = None,
    plot: Annotated[
        bool, typer.Option(help="Draw the pool in two dimensions with the picks marked.")
    ] = False,
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Write the picked records and how their texts begin.")
    ] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a setting: --set select.fraction=0.2. Repeatable."),
    ] = None,
) -> None:
    """Measure the data, select, and write which samples were picked and why.

    The same command goes on with a measuring pass that was stopped.
    """
    from gradwise.recipe import Recipe
    from gradwise.run.ranks import is_first
    from gradwise.run.select import PICKS, SIGNALS, select_samples

    folder = out or Path("selections") / recipe.stem
    loaded = Recipe.load(recipe, set_)
    tell = print if is_first() else _silent
    picked = select_samples(loaded, folder, text=text, tell=tell)
    if not is_first():
        return
    print(f"{len(picked.indices):,} samples picked by {loaded.select.method}: {folder}")
    for rank, (index, why) in enumerate(zip(picked.indices[:3], picked.why[:3], strict=False)):
        print(f"  {rank + 1}. sample {index}: {why}")
    if plot:
        from gradwise.report.pool import draw_pool

        print(f"Drawn: {draw_pool(folder / SIGNALS, folder / PICKS)}")


def _silent(_: str) -> None:
    pass
