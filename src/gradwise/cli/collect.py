"""`gradwise collect`: per-sample signals of a recipe's data, for people with their own trainer."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gradwise.console import on_terminal, say


def collect(
    recipe: Annotated[
        Path, typer.Argument(help="The recipe, a YAML file; its model, data and signals count.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The store; if unset, signals/<name of the recipe>.")
    ] = None,
    want: Annotated[
        str | None,
        typer.Option(
            help="What to measure, by comma: loss, embedding, grad_norm, grad, head_norm. If unset, the "
            "first four and what the recipe's methods need."
        ),
    ] = None,
    part: Annotated[str, typer.Option(help="Which part of the data: train, validation or target.")] = "train",
    plot: Annotated[
        bool, typer.Option(help="Draw the distribution of each signal beside the store.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a setting: --set signals.grad_dim=512. Repeatable."),
    ] = None,
) -> None:
    """Measure every sample once: loss, embedding, gradient norm, projected gradient, and more if asked.

    The same command resumes scoring that was interrupted.
    """
    from gradwise.errors import RecipeError
    from gradwise.ranks import is_first
    from gradwise.recipe import Recipe
    from gradwise.signals.wanted import DEFAULT, QUANTITIES

    parts: dict[str, Literal["train", "validation", "target"]]
    parts = {"train": "train", "validation": "validation", "target": "target"}
    if part not in parts:
        raise RecipeError(f"--part is {', '.join(parts)}; found {part!r}.")
    folder = out or Path("signals") / recipe.stem
    loaded = Recipe.load(recipe, set_)
    from gradwise.run.progress import quiet_libraries
    from gradwise.run.signals import collect_signals

    if want is None:
        wanted = [name for name in QUANTITIES if name in {*DEFAULT, *loaded.needs}]
    else:
        wanted = [name.strip() for name in want.split(",") if name.strip()]
    tell = say if is_first() else _silent
    with quiet_libraries(on_terminal()):
        signals = collect_signals(loaded, folder, want=wanted, part=parts[part], tell=tell)
    if not is_first():
        return
    kept = int(signals.ok.sum()) if signals.ok is not None else len(signals)
    say(f"{kept:,} of {len(signals):,} samples measured in {signals.seconds:,.1f} s: {folder}")
    if plot:
        from gradwise.report.signals import draw_signals

        say(f"Drawn: {draw_signals(folder)}")


def _silent(_: str) -> None:
    pass
