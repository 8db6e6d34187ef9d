"""D³'s solver on published instances of the linear ordering problem: gap to the best known value, and
seconds.

    python -m benchmarks.d3.published --lolib FOLDER

Input-output tables extended to 150 and 250 items (XLOLIB, Schiavinotto and Stuetzle 2004); gaps in percent
and seconds on one core, at the default number of moves. FOLDER has `instances/<name>` (the number of items,
then the matrix) and `best_known/best_known.txt` (a line with name and value for each), as the tables are
distributed. They are not part of the repository; without FOLDER nothing is measured.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.command_line import Script
from benchmarks.common.tables import Claim, Content, Page, mean, number, of_kind, table
from benchmarks.d3.solver import timed
from gradwise.numerics import linear_order


def instances(folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and measurement of every instance with a known best value."""
    lines = (folder / "best_known" / "best_known.txt").read_text().splitlines()
    for name, value in (words for words in map(str.split, lines) if len(words) == 2):
        if (path := folder / "instances" / name).is_file():
            yield name, partial(measure, path, float(value))


def measure(path: Path, best: float) -> dict[str, Any]:
    """Value, seconds and gap at the default number of moves."""
    numbers = np.array(path.read_text().split(), dtype=np.float64)
    n = int(numbers[0])
    w = numbers[1:].reshape(n, n)
    np.fill_diagonal(w, 0)
    linear_order(w, max_moves=1)
    order = timed(w, None, 0)
    return {"n": n, **order, "best_known": best, "gap_percent": round(100 * (1 - order["value"] / best), 4)}


def page(content: Content) -> Page:
    entries, rows = list(of_kind(content, "published").values()), []
    for n in sorted({entry["n"] for entry in entries}):
        same = [entry for entry in entries if entry["n"] == n]
        largest = max(entry["gap_percent"] for entry in same)
        gap, seconds = mean(same, "gap_percent"), mean(same, "seconds")
        rows.append([str(n), str(len(same)), number(gap, 3), number(largest, 3), number(seconds, 2)])
    return Page(
        command="python -m benchmarks.d3.published --lolib FOLDER",
        sections=[table(["n", "instances", "mean gap", "largest", "seconds"], rows)],
        claims=[
            Claim(
                f"D³'s solver on published instances of {' and '.join(row[0] for row in rows)} items: "
                "mean gap to the best known",
                ", ".join(f"{row[2]} %" for row in rows),
            )
        ],
    )


SCRIPT = Script(__doc__, "d3-published")
SCRIPT.add_argument("--lolib", type=Path, help="folder of published instances")


def main() -> None:
    options, result = SCRIPT.start()
    if options.lolib is None:
        print("No --lolib, so nothing is measured.")
        return
    for name, work in instances(options.lolib):
        result.once(f"published/{name}", work)


if __name__ == "__main__":
    main()
