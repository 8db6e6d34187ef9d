"""`gradwise report`: the page about a run or a comparison."""

from pathlib import Path
from typing import Annotated

import typer

from gradwise.console import say


def report(
    folder: Annotated[Path, typer.Argument(help="A run directory, or the folder of a comparison.")],
    out: Annotated[Path | None, typer.Option(help="The file; if unset, report.html in the folder.")] = None,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Show how texts of samples begin.")] = True,
    metric: Annotated[
        str, typer.Option(help="What the first table of a comparison is about.")
    ] = "held_out_loss",
) -> None:
    """Write one HTML page on what was run and how it ended, readable without a network.

    `train` and `compare` write it at their end. Files that are missing or damaged are named on the page.
    """
    from gradwise.report.page.write import write_page

    path = write_page(folder.expanduser(), out, text=text, metric=metric)
    say(f"Report: {path} (open it in a browser)")
