"""Writes the page about a folder: a run or a comparison."""

from pathlib import Path

from gradwise.console import say
from gradwise.errors import RecipeError
from gradwise.report.page.comparison import comparison_page
from gradwise.report.page.document import REPORT, write_html
from gradwise.report.page.run import run_page
from gradwise.report.reading import HELD_OUT_LOSS
from gradwise.text import one_line


def write_page(
    folder: Path, out: Path | None = None, *, text: bool = True, metric: str = HELD_OUT_LOSS
) -> Path:
    """Write the page about a run or a comparison and return its path, by default `report.html` in the folder.
    `metric` is that of a comparison's first table. Raises GradwiseError if the folder holds neither."""
    if not folder.is_dir():
        raise RecipeError(f"{folder} is no folder; give a run directory or the folder of a comparison.")
    if (folder / "comparison.yaml").is_file():
        page = comparison_page(folder, metric)
    else:
        page = run_page(folder, text=text)
    path = folder / REPORT if out is None else out.expanduser()
    write_html(page, path)
    return path


def write_at_end(folder: Path, *, metric: str = HELD_OUT_LOSS) -> None:
    """Write the page at the end of a run or a comparison, and say where; a failure is only a warning."""
    try:
        say(f"Report: {write_page(folder, metric=metric)}")
    except Exception as error:  # the run is done and saved, whatever a drawing makes of its record
        reason = one_line(error)
        say(f"Warning: the report could not be written ({reason}); `gradwise report {folder}` tries again.")
