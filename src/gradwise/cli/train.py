"""`gradwise train`, `estimate` before it and `report` after it, and the `schema` of their recipes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gradwise.console import say
from gradwise.errors import RecipeError
from gradwise.ranks import is_first


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
        typer.Option(help="Draw GRACE's coreset over time, D³'s influences and DiReCT's spectrum."),
    ] = False,
) -> None:
    """Train a model as a recipe says; the same command resumes a run that was stopped."""
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
    # torch and transformers are imported from here on, so that most mistakes in a recipe are said at once.
    from gradwise.estimating import expected_memory
    from gradwise.run import train as run_recipe
    from gradwise.run.summary import summary

    outcome = run_recipe(loaded, out or Path("runs") / recipe.stem, forecast_memory=expected_memory)
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


def estimate(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    memory: Annotated[
        str | None, typer.Option(help="Memory of the device that the peak is compared with, such as 24GiB.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a setting: --set layers.active=4. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")] = False,
    ranks: Annotated[int | None, typer.Option(help="Ranks that FSDP2 shards the model over.", min=1)] = None,
    sharded_as_loaded: Annotated[
        bool, typer.Option("--sharded-as-loaded", help="The model is sharded by DistributedConfig.")
    ] = False,
) -> None:
    """Predict a recipe's peak memory and the cost of its decisions, and list changes if it does not fit.

    Only the model's configuration is read: no weights, no data.
    """
    from gradwise.estimating import estimate as estimate_recipe
    from gradwise.estimating.estimate import bytes_of
    from gradwise.recipe import Recipe
    from gradwise.run.progress import quiet_libraries

    size = None if memory is None else bytes_of(memory)
    with quiet_libraries(False):
        loaded = Recipe.load(recipe, set_)
        forecast = estimate_recipe(loaded, size, ranks=ranks, sharded_as_loaded=sharded_as_loaded)
    say(json.dumps(forecast.as_dict(), indent=2) if as_json else str(forecast))


def report(
    folder: Annotated[Path, typer.Argument(help="A run directory, or the folder of a comparison.")],
    out: Annotated[Path | None, typer.Option(help="The file; if unset, report.html in the folder.")] = None,
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Show the beginnings of the samples' texts.")
    ] = True,
    metric: Annotated[str, typer.Option(help="Metric of a comparison's first table.")] = "held_out_loss",
) -> None:
    """Write the HTML page of a run or a comparison, which can be read without a network.

    `train` and `compare` write it when they finish. Files that are missing or damaged are named on the page.
    """
    from gradwise.report.page.write import write_page

    path = write_page(folder.expanduser(), out, text=text, metric=metric)
    say(f"Report: {path} (open it in a browser)")


def schema() -> None:
    """Print the JSON schema of a recipe.

    An editor that knows YAML schemas then completes and checks recipes: save the output beside the recipe and
    begin the recipe with the line "# yaml-language-server: $schema=<file>".
    """
    from gradwise.recipe import Recipe

    print(json.dumps(Recipe.schema(), indent=2))
