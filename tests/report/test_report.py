"""Reports: what is read of a folder, and that tables and curves say what the runs say."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from gradwise import RecipeError
from gradwise.report.comparison import write_report
from gradwise.report.curves import COLOURS, loss_curves, mean_curve
from gradwise.report.reading import Point, read_results, read_run
from gradwise.report.tables import as_csv, as_parquet, as_text, results_rows, runs_rows
from tests.report.synthetic import Folder

ACCURACY = {"accuracy": {"value": 0.5, "better": "higher", "samples": 9}}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "c").mkdir()
    return Folder(tmp_path / "c")


@pytest.fixture
def three(folder: Folder) -> Path:
    """A reference, an arm that is better and decides for long, and one that fails."""
    for seed in range(3):
        folder.run("plain", seed, 2.0 + 0.01 * seed, scores=ACCURACY)
        better = {"accuracy": {"value": 0.6 + 0.001 * seed, "better": "higher", "samples": 9}}
        folder.run("chosen", seed, 1.5 + 0.012 * seed, deciding=10.0, step=2.0 + seed, scores=better)
        folder.run("wild", seed, 9.0, finished=False, steps=2)
        (folder.path / "runs" / "wild" / f"seed-{seed}" / "failure.txt").write_text("The loss is nan.\n")
    return folder.comparison(
        ["plain", "chosen", "wild", "never"], failed={"never": "No time."}, notes=["Look."]
    )


class TestReading:
    def test_a_finished_run(self, folder: Folder) -> None:
        run = read_run(folder.run("a", 3, 2.0, deciding=5.0), "a", 3)
        assert run.finished
        assert (run.steps, run.tokens, run.seconds, run.deciding) == (4, 40, 9.0, 5.0)
        assert run.memory == 3 * 2**29
        assert run.scores["held_out_loss"].value == 2.0
        assert run.curve[0] == Point(0, 0, 5.0, 3.0)
        assert run.curve[2] == Point(2, 20, 7.0, 2.5)

    def test_a_run_without_scores_is_not_finished(self, folder: Folder) -> None:
        path = folder.run("a", 0, 2.0)
        (path / "scores.json").unlink()
        assert not read_run(path, "a", 0).finished

    def test_a_run_that_has_not_begun(self, tmp_path: Path) -> None:
        run = read_run(tmp_path / "nowhere", "a", 0)
        assert (run.finished, run.failure, run.curve, run.steps) == (False, None, (), 0)

    def test_a_line_half_written_is_left_out(self, folder: Folder) -> None:
        path = folder.run("a", 0, 2.0)
        with (path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 9, "lo')
        assert read_run(path, "a", 0).steps == 4

    def test_a_folder_without_a_comparison(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="holds no comparison"):
            read_results(tmp_path)


class TestRows:
    def test_of_results(self, three: Path) -> None:
        rows = {(row["metric"], row["arm"]): row for row in results_rows(read_results(three))}
        plain, chosen = rows["held_out_loss", "plain"], rows["held_out_loss", "chosen"]
        assert (plain["verdict"], plain["difference"], plain["p"]) == ("reference", None, None)
        assert (chosen["verdict"], chosen["seeds"], chosen["pairs"]) == ("better", 3, 3)
        assert chosen["difference"] == pytest.approx(-0.498)
        assert chosen["interval_low"] < chosen["difference"] < chosen["interval_high"] < 0
        assert (chosen["steps"], chosen["tokens"], chosen["seconds"]) == (4, 40, 10 + 4 * 3)
        assert (chosen["deciding_seconds"], chosen["peak_memory_bytes"]) == (10, 3 * 2**29)
        assert rows["accuracy", "chosen"]["verdict"] == "better"  # higher is
        assert (rows["held_out_loss", "wild"]["verdict"], rows["held_out_loss", "wild"]["failed"]) == (
            "too few seeds",
            3,
        )
        assert rows["held_out_loss", "never"]["failed"] == 3

    def test_the_metric_asked_for_comes_first(self, three: Path) -> None:
        assert results_rows(read_results(three), "accuracy")[0]["metric"] == "accuracy"
        assert results_rows(read_results(three))[0]["metric"] == "held_out_loss"

    def test_runs_outside_the_budget_are_counted(self, three: Path) -> None:
        rows = {row["arm"]: row for row in results_rows(read_results(three)) if row["better"] == "lower"}
        assert [rows[arm]["over_budget"] for arm in ("plain", "chosen", "wild")] == [0, 2, 0]

    def test_of_runs(self, three: Path) -> None:
        rows = runs_rows(read_results(three))
        assert len(rows) == 3 * (2 + 2 + 1 + 1)
        wild = [row for row in rows if row["arm"] == "wild"]
        assert all(row["failure"] == "The loss is nan." and row["value"] is None for row in wild)
        assert {row["failure"] for row in rows if row["arm"] == "never"} == {"No time."}

    def test_without_the_reference_nothing_is_compared(self, folder: Folder) -> None:
        folder.run("b", 0, 2.0)
        rows = results_rows(read_results(folder.comparison(["a", "b"], seeds=1)))
        assert [(row["arm"], row["mean"], row["verdict"]) for row in rows] == [
            ("a", None, "reference"),
            ("b", 2.0, "too few seeds"),
        ]

    def test_files_hold_the_rows(self, three: Path) -> None:
        rows = results_rows(read_results(three))
        read = list(csv.DictReader(io.StringIO(as_csv(rows))))
        assert [row["verdict"] for row in read] == [row["verdict"] for row in rows]
        assert [float(row["mean"]) if row["mean"] else None for row in read] == [row["mean"] for row in rows]
        assert pyarrow.parquet.read_table(io.BytesIO(as_parquet(rows))).to_pylist() == rows


class TestText:
    def test_says_everything_in_100_columns(self, three: Path) -> None:
        text = as_text(read_results(three))
        assert max(len(line) for line in text.splitlines()) <= 100
        lines = {line.split()[0]: line for line in text.splitlines()[3:8] if line}
        assert lines["chosen"].endswith("better")
        assert "-0.4980" in lines["chosen"]
        assert lines["plain"].endswith("reference")
        assert "held_out_loss (lower is better)" in text
        assert "accuracy (higher is better)" in text
        assert "every run within 20 s charged, deciding included; 6 of 12 runs finished." in text
        assert "! chosen: 2 runs ended outside the budget; the longest took 26.0 s" in text
        assert "failed: wild, seed 2: The loss is nan." in text
        assert "failed: never: No time." in text
        assert "Look." in text
        assert "A claim of a gain wants 5 seeds." in text

    @pytest.mark.parametrize(
        ("seeds", "note"),
        [(2, "A verdict wants at least 3 seeds"), (3, "A claim of a gain wants 5 seeds."), (5, None)],
    )
    def test_what_too_few_seeds_cannot_say(self, folder: Folder, seeds: int, note: str | None) -> None:
        for seed in range(seeds):
            folder.run("a", seed, 2.0 + 0.1 * seed)
            folder.run("b", seed, 1.0 + 0.11 * seed)
        text = as_text(read_results(folder.comparison(["a", "b"], seeds)))
        found = [line for line in text.splitlines() if "wants" in line]
        assert len(found) == (note is not None)
        assert note is None or note in found[0]
        assert ("too few seeds" in text) == (seeds < 3)

    def test_a_metric_that_no_run_has(self, three: Path) -> None:
        text = as_text(read_results(three), "digits/first")
        assert "No run has the metric 'digits/first'; there are: held_out_loss, accuracy." in text
        assert "No run has" not in as_text(read_results(three), "accuracy")

    def test_nothing_finished_yet(self, folder: Folder) -> None:
        text = as_text(read_results(folder.comparison(["a", "b"])))
        assert "0 of 6 runs finished" in text


class TestCurves:
    @staticmethod
    def line(seconds: list[float], losses: list[float]) -> tuple[Point, ...]:
        return tuple(
            Point(10 * k, 100 * k, at, loss) for k, (at, loss) in enumerate(zip(seconds, losses, strict=True))
        )

    def test_are_averaged_evaluation_by_evaluation(self) -> None:
        curves = [self.line([1, 2, 3], [3.0, 2.0, 1.0]), self.line([1, 4, 7], [3.0, 4.0, 2.0])]
        x, mean, spread = mean_curve(curves, "seconds")
        assert x.tolist() == [1, 3, 5]
        assert mean.tolist() == [3.0, 3.0, 1.5]
        assert spread.tolist() == pytest.approx([0, np.sqrt(2), np.sqrt(0.5)])
        assert mean_curve(curves, "steps")[0].tolist() == [0, 10, 20]
        assert mean_curve(curves, "tokens")[0].tolist() == [0, 100, 200]

    def test_of_different_length_keep_their_ends(self) -> None:
        curves = [self.line([0, 1, 2], [3, 2, 1]), self.line([0, 1, 2, 3], [3.0, 2.5, 2.25, 2.0])]
        x, mean, _ = mean_curve(curves, "steps")
        assert (len(x), x[0], x[-1]) == (4, 0, 25)
        assert (mean[0], mean[-1]) == (3.0, 1.5)
        assert mean[1] == pytest.approx((3 - 2 / 3 + 2.5) / 2)  # a third of the way for both

    def test_a_single_run_has_no_spread(self) -> None:
        assert mean_curve([self.line([0, 1], [2, 1])], "steps")[2].tolist() == [0, 0]

    def test_deciding_moves_a_curve_along_the_seconds_and_nothing_else(self, three: Path) -> None:
        results = read_results(three)
        plain, chosen = ([run.curve for run in results.of_arm(arm)] for arm in ("plain", "chosen"))
        assert mean_curve(chosen, "seconds")[0][0] - mean_curve(plain, "seconds")[0][0] == 10
        assert mean_curve(chosen, "steps")[0].tolist() == mean_curve(plain, "steps")[0].tolist()

    def test_more_arms_than_colours_can_be_drawn(self, folder: Folder) -> None:
        arms = [f"arm{number}" for number in range(len(COLOURS) + 2)]
        for arm in arms:
            folder.run(arm, 0, 2.0)
        assert loss_curves(read_results(folder.comparison(arms, seeds=1)), "steps").startswith(b"\x89PNG")


class TestWriting:
    def test_leaves_all_files(self, three: Path) -> None:
        before = {path.name for path in three.iterdir()}
        text = write_report(read_results(three), three, "held_out_loss")
        assert (three / "table.txt").read_text() == text + "\n"
        assert {path.name for path in three.iterdir()} - before == {
            "results.csv", "results.parquet", "runs.csv", "runs.parquet", "table.txt",
            "loss_by_steps.png", "loss_by_tokens.png", "loss_by_seconds.png",
        }  # fmt: skip

    def test_draws_again_only_when_asked_to(self, three: Path) -> None:
        write_report(read_results(three), three, "held_out_loss")
        (three / "loss_by_steps.png").write_text("mine")
        (three / "loss_by_tokens.png").unlink()
        write_report(read_results(three), three, "held_out_loss", draw=False)
        assert (three / "loss_by_steps.png").read_text() == "mine"
        assert (three / "loss_by_tokens.png").exists()

    def test_nothing_to_draw_yet(self, folder: Folder) -> None:
        write_report(read_results(folder.comparison(["a"])), folder.path, "held_out_loss")
        assert not list(folder.path.glob("*.png"))
        assert (folder.path / "runs.csv").exists()
