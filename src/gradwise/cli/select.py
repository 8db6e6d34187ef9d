"""`gradwise select`: the selection that a run would begin with, for people with their own trainer."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradwise.console import on_terminal, say
from gradwise.errors import RecipeError


def select(
    recipe: Annotated[
        Path, typer.Argument(help="The recipe, a YAML file; its model, data, signals and select count.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder; if unset, selections/<name of the recipe>.")
    ] = None,
    plot: Annotated[
        bool,
        typer.Option(
            help="Draw the pool in two dimensions with the picks marked; with --anneal the spectrum."
        ),
    ] = False,
    anneal: Annotated[
        bool,
        typer.Option("--anneal", help="Select what `anneal` trains on, by the model as it stands."),
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

    The same command resumes scoring that was interrupted.
    """
    from gradwise.ranks import is_first
    from gradwise.recipe import Recipe

    folder = out or Path("selections") / recipe.stem
    loaded = Recipe.load(recipe, set_)
    tell = say if is_first() else _silent
    if anneal and plot and (loaded.anneal is None or loaded.anneal.plots != "spectrum"):
        raise RecipeError("--plot draws the spectrum that direct selects by; leave it out.")
    from gradwise.run.progress import quiet_libraries
    from gradwise.run.select import PICKS, RECORDS, SIGNALS, SUMMARY, select_annealing, select_samples

    with quiet_libraries(on_terminal()):
        picked = (select_annealing if anneal else select_samples)(loaded, folder, text=text, tell=tell)
    if not is_first():
        return
    method: Any = loaded.anneal if anneal else loaded.select
    say(f"{len(picked.indices):,} samples picked by {method.method}: {folder}")
    if len(picked.why) == 1:
        say(f"  all of them: {picked.why[0]}")
    else:
        for rank, (index, why) in enumerate(zip(picked.indices[:3], picked.why[:3], strict=False)):
            say(f"  {rank + 1}. sample {index}: {why}")
    records = f", the records: {folder / RECORDS}" if (folder / RECORDS).exists() else ""
    say(f"The picks with their reasons: {folder / PICKS}{records}")
    if plot and anneal:
        from gradwise.report.spectrum import draw_spectrum

        say(f"Drawn: {draw_spectrum(folder / SUMMARY, folder / 'spectrum.png')}")
    elif plot:
        from gradwise.report.pool import draw_pool

        say(f"Drawn: {draw_pool(folder / SIGNALS, folder / PICKS)}")


def _silent(_: str) -> None:
    pass
