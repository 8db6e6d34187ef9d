"""`gradwise estimate`: whether a recipe fits, before anything is loaded."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gradwise.console import say


def estimate(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    memory: Annotated[
        str | None, typer.Option(help="Memory of the device, such as 24GiB. If unset, nothing is judged.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a setting: --set layers.active=4. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")] = False,
) -> None:
    """Foretell a recipe's peak memory and shares of time, by part, and what to change if it does not fit.

    Only the model's configuration is read: no weights, no data.
    """
    from gradwise.estimating import estimate as estimate_recipe
    from gradwise.estimating.estimate import bytes_of
    from gradwise.recipe import Recipe
    from gradwise.run.progress import quiet_libraries

    size = None if memory is None else bytes_of(memory)
    with quiet_libraries(False):
        found = estimate_recipe(Recipe.load(recipe, set_), size)
    say(json.dumps(found.as_dict(), indent=2) if as_json else str(found))
