"""The command line: one file per command; a user's mistakes end in one sentence and exit code 2."""

import os
import sys
import time

import typer

from gradwise.errors import DataError, GradwiseError, RecipeError
from gradwise.ranks import is_first, lost_connection, raised_everywhere

app = typer.Typer(
    help="Which samples, in which order, through which layers: decided by the gradients of the run itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FAILED, MISTAKE = 1, 2
PATIENCE = 3.0
"""Seconds that a rank waits for the first one to fail with the same error."""

INTERRUPTED = 130
"""What typer makes of a KeyboardInterrupt."""


def main() -> None:
    """Entry point of the `gradwise` command: 0 done, 1 failed or stopped, 2 the user's mistake."""
    if not sys.stderr.isatty():
        # Bars of libraries that ask nobody; read when tqdm is first imported, which is after this.
        os.environ.setdefault("TQDM_DISABLE", "1")
    from gradwise.cli import collect, compare, demo, order, schema, select, train

    commands = (train.train, collect.collect, select.select, order.order, compare.compare, demo.demo)
    for command in (*commands, schema.schema):
        app.command()(command)
    try:
        app(standalone_mode=True)
    except (RecipeError, DataError) as error:
        _leave(error, MISTAKE)
    except GradwiseError as error:
        _leave(error, FAILED)
    except RuntimeError as error:
        if not lost_connection(error):
            raise
        if not is_first():
            raise SystemExit(FAILED) from None
        _leave(GradwiseError("Another rank of this run has ended; its own message says why."), FAILED)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        print(
            "\ngradwise: stopped at once; the same command resumes from the last checkpoint.", file=sys.stderr
        )
        raise SystemExit(FAILED) from None


def _leave(error: Exception, code: int) -> None:
    if not is_first():
        # The first rank speaks for all. An error of this rank alone is one that this rank lives to show:
        # torchrun ends it at once where the first rank has failed as well.
        if raised_everywhere(error):
            raise SystemExit(code) from None
        time.sleep(PATIENCE)
    print(f"gradwise: {error}", file=sys.stderr)
    raise SystemExit(code) from None
