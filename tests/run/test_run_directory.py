"""The run directory: who may write there, and what is read back from it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gradwise import CheckpointError, Data, Grass, Recipe, RecipeError, Source, Train
from gradwise.methods.baselines import CosineTop
from gradwise.methods.direct import Direct
from gradwise.run import RunDirectory

RECIPE = Recipe(data=Data(train=Source(path="/data/a.jsonl")), layers=Grass(active=2))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "below" / "run")


def step(run: RunDirectory) -> None:
    run.metrics_file.write_text('{"step": 1, "loss": 2.0}\n')


class TestOpened:
    def test_writes_a_recipe_that_loads_to_the_same(self, run: RunDirectory):
        with run.opened(RECIPE):
            assert Recipe.load(run.recipe_file) == RECIPE

    def test_a_run_under_way_goes_on_with_its_own_recipe_only(self, run: RunDirectory):
        with run.opened(RECIPE):
            step(run)
        with run.opened(RECIPE):
            pass
        other = Recipe(data=RECIPE.data, layers=Grass(active=3), train=Train(arguments={"weight_decay": 0.1}))
        with pytest.raises(RecipeError) as caught, run.opened(other):
            pass
        assert "different: layers.active was 2, now 3; train.weight_decay was None, now 0.1. " in str(
            caught.value
        )
        assert Recipe.load(run.recipe_file) == RECIPE

    def test_before_the_last_phase_its_budget_may_be_mended(self, run: RunDirectory):
        first, mended = (replace(RECIPE, anneal=Direct(count=5, tau=tau)) for tau in (0.1, 0.9))
        others = (Direct(count=5, last=0.3), Direct(count=5, pool="selection"), CosineTop(count=5))
        with run.opened(first):
            step(run)
        with run.opened(mended):
            assert Recipe.load(run.recipe_file) == mended
        for other in others:
            with (
                pytest.raises(RecipeError, match=r"different: .*anneal\."),
                run.opened(replace(RECIPE, anneal=other)),
            ):
                pass
        (run.path / "events.jsonl").write_text('{"event": "anneal"}\n')
        with pytest.raises(RecipeError, match=r"anneal\.tau was 0\.9, now 0\.1"), run.opened(first):
            pass

    def test_many_differences_are_cut_short(self, run: RunDirectory):
        with run.opened(RECIPE):
            step(run)
        other = Recipe(layers=Grass(active=5, period=5, probe=5, smoothing=0.1, floor=0.1))
        with (
            pytest.raises(RecipeError, match=r"different: [^;]*; [^;]*; [^;]*; [^;]*; \.\.\.\. Give --out"),
            run.opened(other),
        ):
            pass

    @pytest.mark.parametrize("left", ["recipe only", "environment", "evaluation"])
    def test_what_failed_before_its_first_step_gives_way(self, run: RunDirectory, left: str):
        with run.opened(RECIPE):
            if left == "environment":
                run.note_environment({"data": {"fingerprint": "old"}})
            if left == "evaluation":
                run.metrics_file.write_text('{"step": 0, "eval_loss": 2.0}\n')
        with run.opened(Recipe(seed=3)):
            assert Recipe.load(run.recipe_file).seed == 3
            run.check_data("new")

    @pytest.mark.parametrize("left", ["step", "checkpoint", "model"])
    def test_what_is_worth_keeping_does_not(self, run: RunDirectory, left: str):
        with run.opened(RECIPE):
            if left == "step":
                step(run)
            else:
                {"checkpoint": run.checkpoints / "checkpoint-10", "model": run.model}[left].mkdir(
                    parents=True
                )
        with pytest.raises(RecipeError, match="holds a run of another recipe"), run.opened(Recipe(seed=3)):
            pass

    def test_the_temporary_file_of_a_killed_first_write_is_no_stranger(self, run: RunDirectory):
        run.path.mkdir(parents=True)
        (run.path / ".recipe.yaml.4711").write_text("mod")
        with run.opened(RECIPE):
            assert Recipe.load(run.recipe_file) == RECIPE

    def test_strangers_are_named_and_left_alone(self, run: RunDirectory):
        run.path.mkdir(parents=True)
        for name in "dcba":
            (run.path / name).touch()
        with (
            pytest.raises(RecipeError, match=r"not empty and holds no run \(found a, b, c\)"),
            run.opened(RECIPE),
        ):
            pass
        assert sorted(path.name for path in run.path.iterdir()) == ["a", "b", "c", "d"]

    def test_other_ranks_write_nothing(self, run: RunDirectory):
        with run.opened(RECIPE, writes=False):
            assert not run.path.exists()

    def test_the_lock_is_given_back_also_after_a_failure(self, run: RunDirectory):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with pytest.raises(ZeroDivisionError), run.opened(RECIPE):
            raise ZeroDivisionError
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        with run.opened(RECIPE):
            pass


class TestData:
    def test_the_same_data_pass(self, run: RunDirectory):
        run.note_environment({"data": {"fingerprint": "a" * 64}})
        run.check_data("a" * 64)

    def test_other_data_are_refused(self, run: RunDirectory):
        run.note_environment({"data": {"fingerprint": "a" * 64}})
        with pytest.raises(CheckpointError, match=r"fingerprint a{12}, now b{12}\); restore them"):
            run.check_data("b" * 64)

    def test_the_environment_is_that_of_the_beginning(self, run: RunDirectory):
        run.note_environment({"data": 1})
        run.note_environment({"data": 2})
        assert json.loads(run.environment_file.read_text()) == {"data": 1}


class TestReading:
    def test_nothing_yet(self, run: RunDirectory):
        assert run.metrics() == run.events() == []
        assert not run.finished
        assert not run.started

    def test_a_half_written_last_line_does_not_count(self, run: RunDirectory):
        run.path.mkdir(parents=True)
        run.events_file.write_text('{"event": "plan"}\n{"event": "lay')
        assert run.events() == [{"event": "plan"}]


class TestSaveModel:
    def test_appears_in_one_move(self, run: RunDirectory):
        run.path.mkdir(parents=True)
        (run.path / ".model").mkdir()
        (run.path / ".model" / "left_over").touch()
        met = []

        def write(folder: str) -> None:
            assert not run.finished
            Path(folder).mkdir()
            for name in ("weights", "training_args.bin"):
                (Path(folder) / name).write_text("w")

        run.save_model(write, lambda: met.append(1), first=True)
        assert run.finished
        assert [path.name for path in run.model.iterdir()] == ["weights"]
        assert not (run.path / ".model").exists()
        assert len(met) == 2

    def test_a_failure_leaves_the_run_unfinished(self, run: RunDirectory):
        run.path.mkdir(parents=True)

        def write(folder: str) -> None:
            Path(folder).mkdir()
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space left"):
            run.save_model(write, lambda: None, first=True)
        assert not run.finished
