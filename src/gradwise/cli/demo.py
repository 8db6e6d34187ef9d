"""`gradwise demo`: a real model, real data, and a comparison of all methods; minutes on two cores."""

from pathlib import Path
from typing import Annotated

import typer

from gradwise.console import say


def demo(
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny", help="Only a quarter-million-parameter model that comes with gradwise; a minute."
        ),
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Compare the methods over three seeds as well.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="Folder of both; if unset, runs/demo or runs/demo-tiny.")
    ] = None,
) -> None:
    """Fine-tune a small model by all four methods at once, then compare the methods alone and together.

    Model and data come with gradwise. Ends in a table and in two reports; the same command resumes.
    """
    import torch

    from gradwise.demo import smollm2_recipe, tiny_recipe
    from gradwise.report.page.write import write_at_end
    from gradwise.run import train
    from gradwise.run.summary import summary

    if tiny:
        # Threads that wait for each other cost more than so small a model computes: beside other work on two
        # cores, 336 s with two threads and 27 s with one (docs/log.md, 2026-11-21).
        torch.set_num_threads(1)
    folder = out or Path("runs") / ("demo-tiny" if tiny else "demo")
    outcome = train(tiny_recipe() if tiny else smollm2_recipe(), folder / "run")
    if not outcome.finished:
        raise typer.Exit(1)
    say(summary(outcome.run))
    write_at_end(outcome.run.path)
    if compare:
        _compare(folder / "comparison")


def _compare(folder: Path) -> None:
    """Each method alone, all together, a random part and all of the data, at equal steps."""
    import os

    from gradwise.comparison import compare
    from gradwise.demo import ARMS, SEEDS, STEPS, tiny_recipe
    from gradwise.report.page.write import write_at_end

    say("\nThe same on a quarter-million-parameter model: each method alone, all together, random, full.")
    jobs = max(1, min(4, os.cpu_count() or 1))
    outcome = compare(
        tiny_recipe(), ARMS, seeds=SEEDS, budget=f"steps={STEPS}", out=folder, jobs=jobs, discard_models=True
    )
    say(outcome.table)
    write_at_end(outcome.folder)
    if outcome.stopped or outcome.failed:
        raise typer.Exit(1)
    say(f"Open both reports in a browser: run/report.html and comparison/report.html in {folder.parent}.")
