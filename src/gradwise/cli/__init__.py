"""The command line: whatever goes wrong ends in a sentence and an exit code."""

import os
import sys
import time
import traceback
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from gradwise.console import guard_streams, on_terminal, say
from gradwise.errors import DataError, RecipeError
from gradwise.failures import sentence_on
from gradwise.ranks import is_first, lost_connection, raised_everywhere
from gradwise.stopping import stoppable
from gradwise.text import CONTROL

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FAILED, MISTAKE = 1, 2
RANK_WAIT = 3.0
"""Seconds that a rank waits for the first one to fail with the same error."""

INTERRUPTED = 130
"""What typer makes of a KeyboardInterrupt."""


def main() -> None:
    """Entry point of the `gradwise` command: 0 done, 1 failed or stopped, 2 the user's mistake."""
    guard_streams()
    # What libraries will change some day is not for those who run a command.
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not on_terminal():
        # Bars of libraries that ask nobody; read when tqdm is first imported, which is after this.
        os.environ.setdefault("TQDM_DISABLE", "1")
    from gradwise.cli import compare, demo, steps, train

    commands = (train.train, steps.collect, steps.select, steps.order, compare.compare, demo.demo)
    for command in (*commands, train.report, train.estimate, train.schema):
        app.command()(command)
    for argument in sys.argv[1:]:
        if CONTROL.search(argument):
            _leave(f"the argument {argument} holds control characters, or is not UTF-8.", MISTAKE)
    try:
        with stoppable(_interrupt, _leave_at_once):
            app(standalone_mode=True)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        _leave("stopped; the same command continues from what is saved.", FAILED)
    except Exception as error:
        _leave_for(error)


def _print_version(requested: bool) -> None:
    if requested:
        say(f"gradwise {version('gradwise')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune language models; choose samples, order and layers by the gradients of the run."""


def _leave_for(error: Exception) -> None:
    code = MISTAKE if isinstance(error, RecipeError | DataError) else FAILED
    lost = lost_connection(error)
    if not is_first():
        # The first rank speaks for all. An error of this rank alone is one that this rank lives to show:
        # torchrun ends it at once where the first rank has failed as well.
        if lost or raised_everywhere(error):
            raise SystemExit(code) from None
        time.sleep(RANK_WAIT)
    sentence = "another rank of this run has ended; its own message says why." if lost else sentence_on(error)
    if sentence is None:
        say(traceback.format_exc(), error=True)
        sentence = "an unexpected error, most likely a defect of gradwise; please report it with these lines."
    _leave(sentence, code)


def _leave(sentence: str, code: int) -> None:
    say(f"gradwise: {sentence}", error=True)
    raise SystemExit(code) from None


def _interrupt(_: str) -> None:
    raise KeyboardInterrupt


def _leave_at_once(name: str) -> None:
    say(f"\ngradwise: {name}: stopped at once; the same command continues from what is saved.", error=True)
    os._exit(FAILED)
