"""Tables as files."""

import csv
import io

from gradwise.report.tables import as_csv


def test_no_cell_of_a_csv_file_is_a_formula() -> None:
    hostile = ["=1+1", "+1", "-1", "@x", "\t=1", "\n=1", "\n\n=1"]
    text = as_csv([{"=name": value, "number": -1.5, "none": None} for value in [*hostile, "plain"]])
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["'=name", "number", "none"]
    assert [row[0] for row in rows] == [*(f"'{value}" for value in hostile), "plain"]
    assert len(list(csv.reader(io.StringIO(as_csv([{"name": "x\r=1"}]), newline="")))) == 2
    assert {(row[1], row[2]) for row in rows} == {("-1.5", "")}
