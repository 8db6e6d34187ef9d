"""`gradwise train`: run a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from gradwise.console import say
from gradwise.errors import RecipeError


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Run directory; if unset, runs/<name of the recipe>.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a setting: --set layers.active=4. Repeatable.")
    ] = None,
    plot: Annotated[
        bool,
        typer.Option(
            help="Draw how grace's coreset developed, the influences d3 ordered by, and the spectrum direct "
            "chose by."
        ),
    ] = False,
) -> None:
    """Train a model as a recipe says; the same command resumes a run that was stopped."""
    from gradwise.ranks import is_first
    from gradwise.recipe import Recipe

    loaded = Recipe.load(recipe, set_)
    methods = {"select": loaded.select, "order": loaded.order, "anneal": loaded.anneal}
    plots = {method.plots for method in methods.values() if method is not None}
    if plot and plots == {None}:
        used = ", ".join(f"{name} is {method.method}" for name, method in methods.items() if method)
        raise RecipeError(
            "--plot draws how grace's coreset develops, the influences that d3 orders by and the spectrum "
            f"that direct selects by, and {used}; leave it out."
        )
    from gradwise.estimating import expected_memory
    from gradwise.run import train as run_recipe
    from gradwise.run.summary import summary

    outcome = run_recipe(loaded, out or Path("runs") / recipe.stem, foresee=expected_memory)
    if not outcome.finished:
        raise typer.Exit(1)
    if is_first():
        from gradwise.report.page.write import write_at_end

        say(summary(outcome.run))
        write_at_end(outcome.run.path)
        if plot and "coreset" in plots:
            from gradwise.report.coreset import draw_coreset

            say(f"Drawn: {draw_coreset(outcome.run.path)}")
        if plot and "graph" in plots:
            from gradwise.report.influence import draw_graph, graph_files

            run = outcome.run.path
            drawn = draw_graph(run, run / "graph.png") if graph_files(run) else "no influence was measured"
            say(f"Drawn: {drawn}")
        if plot and "spectrum" in plots:
            from gradwise.report.spectrum import draw_spectra

            for path in draw_spectra(outcome.run.path):
                say(f"Drawn: {path}")
