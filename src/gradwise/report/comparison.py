"""Writes a comparison's report: tables as text, CSV and Parquet, and curves."""

from pathlib import Path

from gradwise.atomic import write_bytes, write_text
from gradwise.report.curves import AXES, loss_curves
from gradwise.report.reading import Results
from gradwise.report.tables import as_csv, as_parquet, as_text, results_rows, runs_rows


def write_report(results: Results, folder: Path, metric: str, *, draw: bool = True) -> str:
    """Write all of it into `folder` and return the text.

    Args:
        results: what was read of the comparison.
        folder: gets results.csv, runs.csv, both as .parquet, table.txt and loss_by_*.png.
        metric: the first table's.
        draw: draw curves even where they have been drawn.
    """
    text = as_text(results, metric)
    for name, rows in (("results", results_rows(results, metric)), ("runs", runs_rows(results))):
        write_text(folder / f"{name}.csv", as_csv(rows))
        write_bytes(folder / f"{name}.parquet", as_parquet(rows))
    if any(len(run.curve) > 1 for run in results.runs):
        for axis in AXES:
            path = folder / f"loss_by_{axis}.png"
            if draw or not path.exists():
                write_bytes(path, loss_curves(results, axis))
    write_text(folder / "table.txt", text + "\n")
    return text
