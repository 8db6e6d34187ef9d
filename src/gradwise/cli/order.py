"""`gradwise order`: the data of a recipe in the order to be trained on, for people with their own trainer."""

from pathlib import Path
from typing import Annotated

import typer

from gradwise.console import on_terminal, say
from gradwise.errors import RecipeError


def order(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="The recipe, a YAML file; its model, data, signals, select, order, seed and "
            "train.batch_size count, and for d3 the optimizer that train names."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder; if unset, orders/<name of the recipe>.")
    ] = None,
    plot: Annotated[
        bool, typer.Option(help="Draw the influences that d3 orders by: who helps whom, and whom first.")
    ] = False,
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Write the records' own columns beside their places.")
    ] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a setting: --set order.window=12. Repeatable."),
    ] = None,
) -> None:
    """Put one epoch of the data in order, and write it as a Parquet file that any trainer can read.

    The same command resumes scoring that was interrupted.
    """
    from gradwise.ranks import is_first
    from gradwise.recipe import Recipe

    folder = out or Path("orders") / recipe.stem
    loaded = Recipe.load(recipe, set_)
    by = loaded.order
    if plot and by.influence is None:
        raise RecipeError(
            f"--plot draws the influences that d3 orders by, and order is {by.method}; leave it out."
        )
    from gradwise.run.order import GRAPH, ORDERED, order_samples
    from gradwise.run.progress import quiet_libraries

    with quiet_libraries(on_terminal()):
        found = order_samples(loaded, folder, text=text, tell=say if is_first() else _silent)
    if not is_first():
        return
    say(f"{len(found.indices):,} samples ordered by {by.method}: {folder / ORDERED}")
    for name, value in found.details.items():
        say(f"  {name.replace('_', ' ')}: {value:g}")
    if plot and found.graph is None:
        say(
            "There are fewer samples than a unit holds; no influence was measured, and there is none to draw."
        )
    elif plot:
        from gradwise.report.influence import draw_graph

        say(f"Drawn: {draw_graph(folder / GRAPH, folder / 'graph.png')}")


def _silent(_: str) -> None:
    pass
