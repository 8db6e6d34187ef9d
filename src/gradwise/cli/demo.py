"""`gradwise demo`: a real model, real data, minutes on two cores."""

from pathlib import Path
from typing import Annotated

import typer

from gradwise.console import say


def demo(
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="A quarter-million-parameter model that comes with gradwise; seconds."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; if unset, runs/demo or runs/demo-tiny.")
    ] = None,
) -> None:
    """Fine-tune a small model on data that come with gradwise, two layers at a time, and show the outcome."""
    import torch

    from gradwise.demo import smollm2_recipe, tiny_recipe
    from gradwise.run import train
    from gradwise.run.summary import summary

    if tiny:
        # Threads that wait for each other cost more than so small a model computes.
        torch.set_num_threads(1)
    recipe = tiny_recipe() if tiny else smollm2_recipe()
    outcome = train(recipe, out or Path("runs") / ("demo-tiny" if tiny else "demo"))
    if not outcome.finished:
        raise typer.Exit(1)
    say(summary(outcome.run))
