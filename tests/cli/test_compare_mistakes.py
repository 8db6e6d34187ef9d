"""Mistakes in the command line of `gradwise compare`, answered before anything is run."""

from pathlib import Path

import pytest

from gradwise import Recipe
from gradwise.comparison.arms import parse_arms
from gradwise.comparison.budget import parse_budget
from gradwise.comparison.folder import ComparisonFolder
from gradwise.folders import claimed
from tests.cli.small_project import Command, Project, Start
from tests.cli.test_compare_command import contents, refused
from tests.conftest import some


class TestMistakes:
    """Refused before anything is run."""

    def check(self, command: Command, *words: str) -> None:
        refused(command, *words)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        some(
            [
                (["--arms", "full,randon"], "unknown arm 'randon'; did you mean 'random'?"),
                (["--arms", ","], "--arms names no arm"),
                (
                    ["--arms", "full", "--seeds", "many"],
                    "--seeds takes a number such as 5, or a list such as 0,3,7",
                ),
                (["--arms", "full", "--seeds", "0"], "--seeds takes a number such as 5"),
                (["--arms", "full", "--seeds", "1,1"], "a list of different seeds"),
                (["--arms", "full", "--budget", "miles"], "--budget: 'miles' is no budget"),
                (["--arms", "full,random"], "random selects a part of the data, and nothing says how much"),
                (
                    ["--arms", "full", "--reference", "lora"],
                    "--reference: 'lora' is none of the arms; found full.",
                ),
                (
                    ["--arms", "full,lisa", "--pairs", "full:grass"],
                    "--pairs: 'grass' is none of the arms; found full, lisa.",
                ),
                (
                    ["--arms", "full,lisa", "--pairs", "full"],
                    "--pairs takes two arms each, such as grass:lisa",
                ),
                (
                    ["--arms", "full", "--metric", "accuracy"],
                    "unknown metric 'accuracy'; known: held_out_loss.",
                ),
            ],
            4,
        ),
        ids=str,
    )
    def test_in_what_was_asked(
        self, gradwise: Start, project: Project, arguments: list[str], said: str
    ) -> None:
        self.check(gradwise("compare", project.path, "--out", "c", *arguments), said)
        assert not (project.folder / "c").exists()

    def test_nothing_to_compare_by(self, gradwise: Start, project: Project) -> None:
        del project.recipe["data"]["validation"]
        self.check(gradwise("compare", project.path, "--arms", "full"), "There is nothing to compare by")

    def test_a_folder_of_something_else(self, gradwise: Start, project: Project) -> None:
        (project.folder / "c").mkdir()
        (project.folder / "c" / "thesis.tex").write_text("Once")
        command = gradwise("compare", project.path, "--arms", "full", "--out", "c")
        self.check(command, "c holds files that gradwise did not write (thesis.tex)")

    @pytest.mark.parametrize(
        ("out", "said"),
        some(
            [
                ("recipe.yaml", "recipe.yaml is a file, not a folder; give another one."),
                ("dangling", "dangling is a broken link, not a folder; give another one."),
                ("/proc/c", "Cannot write to /proc/c: "),
                ("recipe.yaml/c", "Cannot write to recipe.yaml/c: Not a directory"),
                (".", "holds files that gradwise did not write ("),
                ("run", "run holds a training run, not a comparison; give another folder."),
                ("other", "other holds another comparison; different: train.batch_size was 4, now 8."),
            ]
        ),
    )
    def test_a_place_that_cannot_be_written(
        self, gradwise: Start, project: Project, out: str, said: str
    ) -> None:
        recipe = project.path
        (project.folder / "dangling").symlink_to("nowhere")
        with claimed(project.folder / "run", "run", ("metrics.jsonl",)):
            (project.folder / "run" / "metrics.jsonl").write_text("{}")
        earlier = ComparisonFolder(project.folder / "other")
        with earlier.opened():
            base = Recipe.load(recipe, ["train.batch_size=4"])
            earlier.extend(base, parse_arms(["full"], base), [0], "full", parse_budget("steps"))
            earlier.save()
            run = earlier.run("full", 0)
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text("{}\n")
        before = contents(project.folder)
        self.check(gradwise("compare", recipe, "--arms", "full", "--out", out), said)
        after = contents(project.folder)
        assert {name: after[name] for name in before} == before
        assert all(Path(name).name.startswith((".out", ".err")) for name in after.keys() - before.keys())

    def test_under_torchrun(self, gradwise: Start, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        from gradwise import Recipe, RecipeError
        from gradwise.comparison import compare

        monkeypatch.setenv("RANK", "0")
        with pytest.raises(RecipeError, match="was itself started by torchrun"):
            compare(Recipe.load(project.path), ["full"], out=project.folder / "c")

    @pytest.mark.slow
    @pytest.mark.exhaustive
    def test_held_out_data_that_are_trained_on(self, gradwise: Start, project: Project) -> None:
        lines = (project.folder / "train.jsonl").read_text().splitlines()
        project.records("held_out.jsonl", [*lines[:2], "{}", *lines[2:3]][:2])
        command = ["compare", project.path, "--arms", "full", "--seeds", "1", "--out", "c"]
        refusal = "2 of 2 held-out samples also occur in the training data of the recipe"
        self.check(gradwise(*command, "--budget", "steps=1"), refusal, "--allow-overlap")
        assert not (project.folder / "c").exists()
        done = gradwise(*command, "--budget", "steps=1", "--allow-overlap")
        assert done.code == 0, done.stderr
        assert "2 of 2 held-out samples also occur in the training data." in done.stdout

    @pytest.mark.slow
    @pytest.mark.exhaustive
    def test_a_budget_that_deciding_alone_spends(self, gradwise: Start, project: Project) -> None:
        command = ["compare", project.path, "--arms", "full,loss_top", "--fraction", "0.5", "--seeds", "1"]
        done = gradwise(*command, "--out", "c", "--budget", "time=0.001")
        assert done.code == 1
        assert "deciding takes" in done.stdout
        assert "failed: loss_top: Of 0.0 s, 5% are kept as a margin" in done.stdout
