"""What a run of a comparison adds to its arm's recipe, and what the folder keeps of it all."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from gradwise import Recipe, RecipeError
from gradwise.comparison.arms import parse_arms
from gradwise.comparison.budget import Budget
from gradwise.comparison.folder import ComparisonFolder
from gradwise.comparison.runs import FAILURE, LOG, is_done, prepare_folder, run_recipe
from gradwise.run import RunDirectory
from gradwise.training.arguments import training_arguments

NINE = Budget("steps", 9)

DATA = {"train": "a.jsonl", "validation": "b.jsonl"}


def arguments(steps: int = 100, **train: Any) -> dict[str, Any]:
    recipe = Recipe.from_dict({"data": DATA, "train": train})
    return run_recipe(recipe, seed=2, steps=steps).train.arguments


class TestRecipe:
    def test_about_ten_evaluations_and_one_at_the_start(self) -> None:
        for steps in (1, 7, 10, 11, 97, 100, 1234):
            found = arguments(steps)
            assert (found["eval_strategy"], found["eval_on_start"], found["max_steps"]) == (
                "steps",
                True,
                steps,
            )
            assert min(steps, 5) <= -(-steps // found["eval_steps"]) <= 10

    def test_what_the_recipe_says_of_evaluating_and_saving_stands(self) -> None:
        found = arguments(eval_strategy="epoch", save_strategy="no")
        assert (found["eval_strategy"], found["save_strategy"]) == ("epoch", "no")
        assert not {"eval_steps", "save_steps", "eval_on_start"} & found.keys()
        assert arguments(save_steps=7, save_total_limit=3)["save_total_limit"] == 3

    def test_the_budget_decides_the_steps(self) -> None:
        assert arguments(30, max_steps=5, epochs=2)["max_steps"] == 30

    @pytest.mark.parametrize("steps", [9, 47, 1000])
    def test_the_trainer_takes_them_though_it_should_keep_the_best(self, steps: int, tmp_path: Path) -> None:
        base = Recipe.from_dict({"data": DATA, "train": {"load_best_model_at_end": True}})
        train = run_recipe(base, 0, steps).train
        options: dict[str, Any] = {"seed": 0, "ranks": 1, "validation": True, "bars": False}
        found: Any = training_arguments(train, output_dir=tmp_path, **options)
        assert found.save_steps % found.eval_steps == 0

    def test_the_part_of_a_target_that_measures_is_evaluated_on_the_way(self) -> None:
        given = Recipe.from_dict({"data": {"train": "a.jsonl", "target": "b.jsonl"}})
        assert run_recipe(given, 0, 50).train.arguments["eval_steps"] == 5

    def test_without_held_out_data_nothing_is_evaluated(self) -> None:
        found = run_recipe(Recipe.from_dict({"data": {"train": "a.jsonl"}}), 0, 50).train.arguments
        assert not [name for name in found if name.startswith("eval")]


class TestRunDirectory:
    def test_is_claimed_before_its_log_is_written_and_forgets_its_failure(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        prepare_folder(run)
        (run / LOG).write_text("Once")
        (run / FAILURE).write_text("no")
        prepare_folder(run)
        assert not (run / FAILURE).exists()
        with RunDirectory(run).opened(Recipe()):
            assert (run / LOG).read_text() == "Once"

    def test_of_somebody_elses_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / LOG).write_text("mine")
        with pytest.raises(RecipeError, match=r"did not write \(log.txt\)"):
            prepare_folder(tmp_path)

    def test_is_done_once_it_is_scored(self, tmp_path: Path) -> None:
        assert not is_done(tmp_path)
        (tmp_path / "model").mkdir()
        assert not is_done(tmp_path)
        (tmp_path / "scores.json").touch()
        assert is_done(tmp_path)


class TestFolder:
    BASE = Recipe.from_dict({"select": {"method": "random", "fraction": 0.5}})

    def ask(self, path: Path, words: str = "full,random", budget: Budget = NINE, **changes: Any):
        recipe = changes.pop("recipe", self.BASE)
        options = {"seeds": [0, 1], "reference": "random"} | changes
        folder = ComparisonFolder(path)
        with folder.opened():
            folder.extend(recipe, parse_arms(words.split(","), recipe), budget=budget, **options)
            folder.save()
        return folder

    def started(self, folder: ComparisonFolder) -> None:
        run = folder.run("full", 0)
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text('{"step": 1}\n')

    def test_arms_and_seeds_add_up(self, tmp_path: Path) -> None:
        self.started(self.ask(tmp_path))
        found = self.ask(tmp_path, "lisa", seeds=[1, 5], reference="lisa").contents
        assert list(found["arms"]) == ["full", "random", "lisa"]
        assert (found["seeds"], found["reference"]) == ([0, 1, 5], "lisa")

    def test_an_amount_that_was_found_stands_for_none_being_given(self, tmp_path: Path) -> None:
        folder = self.ask(tmp_path)
        self.started(folder)
        assert self.ask(tmp_path, budget=Budget("steps")).budget == Budget("steps", 9)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"budget": Budget("time", 9)}, "the budget was 9 steps, now 9 s"),
            ({"budget": Budget("steps", 8)}, "the budget was 9 steps, now 8 steps"),
            (
                {"recipe": Recipe.from_dict({"select": {"method": "random", "count": 2}})},
                "select.count was None",
            ),
            ({"words": "full=lisa"}, "in the arm full, layers.method was 'all', now 'lisa'"),
        ],
    )
    def test_another_comparison_is_refused_once_there_are_runs_to_lose(
        self, tmp_path: Path, changed: dict[str, Any], said: str
    ) -> None:
        folder = self.ask(tmp_path)
        self.ask(tmp_path, **changed)  # nothing has been run
        folder = self.ask(tmp_path)
        self.started(folder)
        before = folder.file.read_bytes()
        with pytest.raises(RecipeError, match="holds another comparison") as caught:
            self.ask(tmp_path, **changed)
        assert said in str(caught.value)
        assert folder.file.read_bytes() == before

    def test_steps_of_an_arm_or_of_each_of_its_runs(self, tmp_path: Path) -> None:
        folder = self.ask(tmp_path)
        folder.contents["steps"] = {"full": 7, "random": {0: 3}}
        folder.save()
        with folder.opened():
            found = [folder.steps(arm, seed) for arm in ("full", "random", "lisa") for seed in (0, 1)]
        assert found == [7, 7, 3, None, None, None]

    def test_a_refusal_leaves_nothing_behind(self, tmp_path: Path) -> None:
        folder = ComparisonFolder(tmp_path / "new")
        with pytest.raises(RecipeError), folder.opened():
            raise RecipeError("no")
        assert not folder.path.exists()

    def test_somebody_elses_folder_stays_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("Once")
        with pytest.raises(RecipeError, match=r"did not write \(thesis.tex\)"):
            self.ask(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_one_at_a_time(self, tmp_path: Path) -> None:
        folder = self.ask(tmp_path)
        context = multiprocessing.get_context("fork")
        messages = context.SimpleQueue()
        with folder.opened():
            other = context.Process(target=_open_folder, args=(tmp_path, messages))
            other.start()
            other.join()
        assert "Another process is writing to" in messages.get()
        assert other.exitcode == 0


def _open_folder(path: Path, messages: Any) -> None:
    try:
        with ComparisonFolder(path).opened():
            messages.put("opened")
    except RecipeError as error:
        messages.put(str(error))
