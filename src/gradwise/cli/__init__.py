"""The command line: one file per command; a user's mistakes end in one sentence and exit code 2."""

import os
import sys

import typer

from gradwise.errors import DataError, GradwiseError, RecipeError

app = typer.Typer(
    help="Which samples, in which order, through which layers: decided by the gradients of the run itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FAILED, MISTAKE = 1, 2
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
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        print(
            "\ngradwise: stopped at once; the same command goes on from the last checkpoint.", file=sys.stderr
        )
        raise SystemExit(FAILED) from None


def _leave(error: Exception, code: int) -> None:
    print(f"gradwise: {error}", file=sys.stderr)
    raise SystemExit(code) from None
