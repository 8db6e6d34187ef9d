"""The command line of a benchmark, and silence for what libraries print."""

import argparse
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import transformers

from benchmarks.common.folders import RESULTS, ROOT
from benchmarks.common.result_file import ResultFile


class Script(argparse.ArgumentParser):
    """Command line of a benchmark, with `--out`.

    Args: doc: the script's docstring. result: name of the result file without `.json`: subject, dash, part.
        With a word in capitals if it depends on another option; then `out` is None unless the user sets it.
    """

    def __init__(self, doc: str | None, result: str) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.result, path = result, RESULTS / f"{result}.json"
        about = f"result file, resumed if it exists (default: {path.relative_to(ROOT)})"
        default = None if any(map(str.isupper, result)) else path
        self.add_argument("--out", type=Path, default=default, help=about)

    def start(self, threads: int = 1) -> tuple[argparse.Namespace, ResultFile]:
        """Read the command line, open the result file of a part, and silence transformers."""
        options = self.parse_args()
        silence_libraries()
        subject, _, part = self.result.partition("-")
        print(f"results in {options.out}", flush=True)
        return options, ResultFile(options.out, subject, {"part": part}, threads)


def names_among(allowed: Collection[str]) -> Callable[[str], list[str]]:
    """Reads comma-separated names from a command line; rejects unknown ones."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(allowed)}")
        return names

    return parse


def silence_libraries() -> None:
    """No warnings and bars of transformers."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def silence() -> Iterator[None]:
    """Nothing that other packages print."""
    with ExitStack() as stack:
        nowhere = stack.enter_context(Path("/dev/null").open("w"))
        stack.enter_context(redirect_stdout(nowhere))
        stack.enter_context(redirect_stderr(nowhere))
        yield
