"""`gradwise collect`, `select` and `order`: the steps of `train` alone, for people with their own trainer."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gradwise.console import on_terminal, say
from gradwise.errors import RecipeError
from gradwise.ranks import is_first, say_first


def collect(
    recipe: Annotated[
        Path, typer.Argument(help="The recipe, a YAML file; its model, data and signals are used.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The store; if unset, signals/<name of the recipe>.")
    ] = None,
    want: Annotated[
        str | None,
        typer.Option(
            help="Signals to compute, separated by commas: loss, embedding, grad_norm, grad, head_norm, "
            "middle_embedding. If unset, the first four and what the recipe's methods need."
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
    """Compute signals of every sample once: loss, embedding, gradient norm, projected gradient.

    The same command resumes scoring that was interrupted.
    """
    from gradwise.recipe import Recipe
    from gradwise.signals.request import DEFAULT_QUANTITIES, QUANTITIES

    parts: dict[str, Literal["train", "validation", "target"]]
    parts = {"train": "train", "validation": "validation", "target": "target"}
    if part not in parts:
        raise RecipeError(f"--part is {', '.join(parts)}; found {part!r}.")
    folder = (out or Path("signals") / recipe.stem).expanduser()
    loaded = Recipe.load(recipe, set_)
    # Imported once the recipe is read, so that a mistake in it is reported without torch's seconds.
    from gradwise.run.progress import quiet_libraries
    from gradwise.run.signals import collect_signals

    if want is None:
        wanted = [name for name in QUANTITIES if name in {*DEFAULT_QUANTITIES, *loaded.needs}]
    else:
        wanted = [name.strip() for name in want.split(",") if name.strip()]
    with quiet_libraries(on_terminal()):
        signals = collect_signals(loaded, folder, want=wanted, part=parts[part], tell=say_first)
    if not is_first():
        return
    measured = int(signals.ok.sum()) if signals.ok is not None else len(signals)
    say(f"{measured:,} of {len(signals):,} samples measured in {signals.seconds:,.1f} s: {folder}")
    if plot:
        from gradwise.report.signals import draw_signals

        say(f"Drawn: {draw_signals(folder)}")


def select(
    recipe: Annotated[
        Path, typer.Argument(help="The recipe, a YAML file; its model, data, signals and select are used.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder; if unset, selections/<name of the recipe>.")
    ] = None,
    plot: Annotated[
        bool,
        typer.Option(
            help="Draw the pool in two dimensions with the picks marked; with --anneal, DiReCT's spectrum."
        ),
    ] = False,
    anneal: Annotated[
        bool,
        typer.Option(
            "--anneal", help="Select the samples of the annealing phase, with the model's present weights."
        ),
    ] = False,
    text: Annotated[
        bool,
        typer.Option("--text/--no-text", help="Write the picked records and the beginnings of their texts."),
    ] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a setting: --set select.fraction=0.2. Repeatable."),
    ] = None,
) -> None:
    """Score the data, select, and write which samples were picked and why.

    The same command resumes scoring that was interrupted.
    """
    from gradwise.recipe import Recipe

    folder = (out or Path("selections") / recipe.stem).expanduser()
    loaded = Recipe.load(recipe, set_)
    if anneal and plot and (loaded.anneal is None or loaded.anneal.plots != "spectrum"):
        raise RecipeError("--plot draws the spectrum that direct selects by; leave it out.")
    if plot and not anneal and not {"embedding", "middle_embedding"} & loaded.select.needs:
        raise RecipeError(
            f"--plot draws embeddings, which {loaded.select.method} does not measure; leave it out."
        )
    from gradwise.run.progress import quiet_libraries
    from gradwise.run.select import PICKS, RECORDS, SIGNALS, SUMMARY, select_annealing, select_samples

    with quiet_libraries(on_terminal()):
        picked = (select_annealing if anneal else select_samples)(loaded, folder, text=text, tell=say_first)
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


def order(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="The recipe, a YAML file; its model, data, signals, select, order, seed and "
            "train.batch_size are used, and for d3 the optimizer that train names."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder; if unset, orders/<name of the recipe>.")
    ] = None,
    plot: Annotated[bool, typer.Option(help="Draw the influences that d3 measured.")] = False,
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
    from gradwise.recipe import Recipe

    folder = (out or Path("orders") / recipe.stem).expanduser()
    loaded = Recipe.load(recipe, set_)
    by = loaded.order
    if plot and by.influence is None:
        raise RecipeError(
            f"--plot draws the influences that d3 orders by, and order is {by.method}; leave it out."
        )
    from gradwise.run.order import GRAPH, ORDERED, order_samples
    from gradwise.run.progress import quiet_libraries

    with quiet_libraries(on_terminal()):
        epoch_order = order_samples(loaded, folder, text=text, tell=say_first)
    if not is_first():
        return
    say(f"{len(epoch_order.indices):,} samples ordered by {by.method}: {folder / ORDERED}")
    for name, value in epoch_order.details.items():
        say(f"  {name.replace('_', ' ')}: {value:g}")
    if plot and epoch_order.graph is None:
        say(
            "There are fewer samples than a unit holds; no influence was measured, and there is none to draw."
        )
    elif plot:
        from gradwise.report.influence import draw_graph

        say(f"Drawn: {draw_graph(folder / GRAPH, folder / 'graph.png')}")
