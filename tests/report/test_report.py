"""Reports: what is read of a folder, and that tables and curves say what the runs say."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet
import pytest

from gradwise import RecipeError
from gradwise.report.curves import COLOURS, loss_curves, mean_curve
from gradwise.report.reading import Point, Results, read_results, read_run
from gradwise.report.tables import as_csv, as_parquet, as_text, results_rows, runs_rows, write_report
from tests.report.synthetic import Folder, jsonl

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
        assert (chosen["verdict"], chosen["seeds"], chosen["pairs"]) == ("better (preliminary)", 3, 3)
        assert (plain["against"], chosen["against"]) == (None, "plain")
        assert chosen["difference"] == pytest.approx(-0.498)
        assert chosen["interval_low"] < chosen["difference"] < chosen["interval_high"] < 0
        assert (chosen["steps"], chosen["tokens"], chosen["seconds"]) == (4, 40, 10 + 4 * 3)
        assert (chosen["deciding_seconds"], chosen["peak_memory_bytes"]) == (10, 3 * 2**29)
        assert (chosen["epochs"], chosen["lowest_held_out_loss"]) == (2.0, pytest.approx(1.512))
        assert rows["accuracy", "chosen"]["verdict"] == "better (preliminary)"  # higher is
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
        assert re.search(r"^chosen +plain +3 +-0.4980 .* better \(preliminary\)$", text, re.MULTILINE)
        assert re.search(r"^plain +3 +2.0100 +0.0100 +2.0100$", text, re.MULTILINE)
        assert re.search(
            r"^chosen +4 +2.0 +40 +22.0 ! ", text, re.MULTILINE
        )  # steps, epochs, tokens, seconds
        assert "held_out_loss (lower is better)" in text
        assert "accuracy (higher is better)" in text
        assert "every run within 20 s charged, deciding included; 6 of 12 runs finished." in text
        assert "! chosen: 2 runs ended outside the budget; the longest took 26.0 s" in text
        assert "failed: wild, seed 2: The loss is nan." in text
        assert "failed: never: No time." in text
        assert "Look." in text
        assert "Verdicts on fewer than 5 seeds are preliminary" in text
        assert "Overfitting" not in text

    @pytest.mark.parametrize(
        ("seeds", "note"),
        [(2, "A verdict needs at least 3 seeds"), (3, "Verdicts on fewer than 5 seeds"), (5, None)],
    )
    def test_what_too_few_seeds_cannot_say(self, folder: Folder, seeds: int, note: str | None) -> None:
        for seed in range(seeds):
            folder.run("a", seed, 2.0 + 0.1 * seed)
            folder.run("b", seed, 1.0 + 0.11 * seed)
        text = as_text(read_results(folder.comparison(["a", "b"], seeds)))
        found = [line for line in text.splitlines() if "seeds that" in line or "fewer than" in line]
        assert len(found) == (note is not None)
        assert note is None or note in found[0]
        assert ("too few seeds" in text) == (seeds < 3)
        assert ("(preliminary)" in text) == (3 <= seeds < 5)

    def test_a_metric_that_no_run_has(self, three: Path) -> None:
        text = as_text(read_results(three), "digits/first")
        assert "No run has the metric 'digits/first'; there are: held_out_loss, accuracy." in text
        assert "No run has" not in as_text(read_results(three), "accuracy")

    def test_nothing_finished_yet(self, folder: Folder) -> None:
        text = as_text(read_results(folder.comparison(["a", "b"])))
        assert "0 of 6 runs finished" in text


class TestPairs:
    PAIRS: ClassVar = [
        {"arm": "full", "against": "random", "differs": ["select"]},
        {"arm": "lisa", "against": "full", "differs": ["layers"]},
        {"arm": "lisa", "against": "random", "differs": ["select", "order", "layers"]},
    ]

    @pytest.fixture
    def results(self, folder: Folder) -> Results:
        for seed in range(5):
            folder.run("random", seed, 2.0 + 0.1 * seed)
            folder.run("full", seed, 1.0 + 0.11 * seed)
            folder.run("lisa", seed, 0.5 + 0.09 * seed)
        return read_results(folder.comparison(["random", "full", "lisa"], 5, pairs=self.PAIRS))

    def test_every_arm_has_a_row_and_so_has_every_further_pair(self, results: Results) -> None:
        rows = results_rows(results)
        assert [(row["arm"], row["against"], row["differs_in"]) for row in rows] == [
            ("random", None, None),
            ("full", "random", "select"),
            ("lisa", "full", "layers"),
            ("lisa", "random", "select, order and layers"),
        ]
        assert [row["verdict"] for row in rows] == ["reference", "better", "better", "better"]
        assert rows[2]["difference"] == pytest.approx(-0.54)

    def test_more_comparisons_widen_the_intervals_of_all(self, results: Results) -> None:
        one, several = (results_rows(replace(results, pairs=results.pairs[:count]))[1] for count in (1, 3))
        assert several["interval_low"] < one["interval_low"] < one["difference"] == several["difference"]
        assert several["p"] > one["p"]

    def test_a_difference_in_more_than_one_kind_is_said_below_its_row(self, results: Results) -> None:
        lines = as_text(results).splitlines()
        (place,) = (n for n, line in enumerate(lines) if "differs in" in line)
        assert lines[place] == "  differs in select, order and layers"
        assert lines[place - 1].split()[:2] == ["lisa", "random"]

    def test_a_pair_of_what_is_no_arm_is_damage(self, folder: Folder) -> None:
        pairs = [{"arm": "a", "against": "b", "differs": []}]
        with pytest.raises(RecipeError, match="a pair names 'b', which is no arm"):
            read_results(folder.comparison(["a"], pairs=pairs))


class TestOverfitting:
    def text(self, folder: Folder, **options: Any) -> str:
        for seed in range(3):
            folder.run("a", seed, 2.0)
            folder.run("b", seed, 2.0 + 0.01 * seed, **options)
        return as_text(read_results(folder.comparison(["a", "b"]))).replace("\n  ", " ")

    def test_a_rise_after_the_lowest_loss_is_said_once(self, folder: Folder) -> None:
        text = self.text(folder, rise=0.3)
        assert text.count("Overfitting: b (the held-out loss ends 0.30 above its lowest).") == 1
        assert re.search(r"^b +3 +2.0100 +0.0100 +1.7100$", text, re.MULTILINE)

    def test_many_epochs_over_a_small_selection(self, folder: Folder) -> None:
        assert "Overfitting: b (40 epochs over 10% of the data)." in self.text(folder, epochs=40, selected=2)

    @pytest.mark.parametrize("options", [{"rise": 0.01}, {"epochs": 40}, {"epochs": 3, "selected": 2}])
    def test_is_not_suspected_without_a_sign(self, folder: Folder, options: dict[str, Any]) -> None:
        assert "Overfitting" not in self.text(folder, **options)

    def test_a_loss_that_never_fell_is_something_else(self, folder: Folder) -> None:
        for seed in range(3):
            path = folder.run("a", seed, 2.0)
            jsonl(path / "metrics.jsonl", [{"step": 0, "eval_loss": 1.0, "seconds": 0.0}])
        text = as_text(read_results(folder.comparison(["a"])))
        assert "1.0000" in text and "Overfitting" not in text


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
