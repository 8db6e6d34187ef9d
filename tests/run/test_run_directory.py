"""The run directory: who may write there, and what is read back from it."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradwise import CheckpointError, Data, Grass, Recipe, RecipeError, Source, Train
from gradwise.atomic import TEMPORARY
from gradwise.errors import StorageError
from gradwise.methods.baselines import CosineTop
from gradwise.methods.direct import Direct
from gradwise.run import RunDirectory
from gradwise.run.directory import FILES

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

    def test_a_run_under_way_resumes_with_its_own_recipe_only(self, run: RunDirectory):
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

    def test_before_the_annealing_phase_its_budget_may_be_mended(self, run: RunDirectory):
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

    def test_a_recipe_of_the_users_own_does_not_make_a_folder_ours(self, run: RunDirectory):
        run.path.mkdir(parents=True)
        RECIPE.save(run.recipe_file)
        before = run.recipe_file.read_bytes()
        with pytest.raises(RecipeError, match=r"did not write \(recipe.yaml\)"), run.opened(RECIPE):
            pass
        assert [path.name for path in run.path.iterdir()] == ["recipe.yaml"]
        assert run.recipe_file.read_bytes() == before

    def test_files_that_the_user_adds_stay(self, run: RunDirectory):
        with run.opened(RECIPE):
            step(run)
        mine = [
            run.path / "notes.txt",
            run.path / "plan" / "notes.txt",
            run.path / "checkpoints" / "notes.txt",
        ]
        for path in mine:
            path.parent.mkdir(exist_ok=True)
            path.write_text("mine")
        with run.opened(RECIPE):
            pass
        run.delete_leftovers()
        assert all(path.read_text() == "mine" for path in mine)

    @pytest.mark.parametrize("name", FILES)
    def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder(self, run: RunDirectory, name: str):
        with run.opened(RECIPE):
            pass
        path = run.path / name
        path.unlink(missing_ok=True)
        if name in ("plan", "checkpoints", "model"):
            path.touch()
        else:
            path.mkdir()
        with (
            pytest.raises(CheckpointError, match=rf"{name} is a (file|folder) and should be"),
            run.opened(RECIPE),
        ):
            pass

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"{", b"seed: [", b"- 1", b"model: 3"], ids=repr)
    def test_a_damaged_recipe(self, run: RunDirectory, content: bytes):
        with run.opened(RECIPE):
            step(run)
        run.recipe_file.write_bytes(content)
        with pytest.raises(RecipeError), run.opened(RECIPE):
            pass

    def test_settings_that_a_later_version_adds_have_their_defaults(self, run: RunDirectory):
        with run.opened(RECIPE):
            step(run)
        stored = yaml.safe_load(run.recipe_file.read_text())
        del stored["layers"]["smoothing"], stored["train"]["schedule"], stored["signals"]
        run.recipe_file.write_text(yaml.safe_dump(stored))
        with run.opened(RECIPE):
            pass
        with (
            pytest.raises(RecipeError, match=r"layers.smoothing was 0.5, now 0.9"),
            run.opened(replace(RECIPE, layers=Grass(active=2, smoothing=0.9))),
        ):
            pass

    def test_the_lock_is_given_back_also_after_a_failure(self, run: RunDirectory):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with pytest.raises(ZeroDivisionError), run.opened(RECIPE):
            raise ZeroDivisionError
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        with run.opened(RECIPE):
            pass


class TestData:
    @pytest.mark.parametrize(
        "content", [b"", b"\xff", b"[]", b"{}", b'{"data": 3}', b'{"data": null}'], ids=repr
    )
    def test_a_damaged_environment(self, run: RunDirectory, content: bytes):
        run.path.mkdir(parents=True)
        run.environment_file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"environment.json is damaged \(.*restore it"):
            run.check_data("a" * 64)

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

    @pytest.mark.parametrize("line", [b"\xff\xfe", b"{", b"3", b"null", b'["a"]', b"\0\0"], ids=repr)
    def test_a_line_that_is_no_record_is_named(self, run: RunDirectory, line: bytes):
        run.path.mkdir(parents=True)
        run.metrics_file.write_bytes(b'{"step": 1}\n' + line + b"\n")
        with pytest.raises(CheckpointError, match=r"metrics.jsonl is damaged \(line 2: "):
            run.metrics()

    @pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"scores": {"a": 3}}'], ids=repr)
    def test_damaged_scores(self, run: RunDirectory, content: bytes):
        run.path.mkdir(parents=True)
        run.scores_file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"scores.json is damaged"):
            run.scores()


class TestModel:
    def write(self, folder: str) -> None:
        Path(folder).mkdir()
        for name in ("weights", "config.json", "training_args.bin"):
            (Path(folder) / name).write_text("w")

    def test_appears_in_one_move(self, run: RunDirectory):
        with run.opened(RECIPE):
            (run.path / f"{TEMPORARY}model").mkdir()
            (run.path / f"{TEMPORARY}model" / "left_over").touch()

        def write(folder: str) -> None:
            assert not run.finished
            self.write(folder)

        with run.opened(RECIPE):
            run.save_model(write)
            assert run.finished
            run.check_model(contents=True)
        assert sorted(path.name for path in run.model.iterdir()) == ["config.json", "weights"]
        assert not list(run.path.glob(f"{TEMPORARY}*"))

    def test_a_failure_leaves_the_run_unfinished(self, run: RunDirectory):
        def write(folder: str) -> None:
            Path(folder).mkdir()
            raise OSError(errno.ENOSPC, "No space left on device")

        with (
            run.opened(RECIPE),
            pytest.raises(StorageError, match=r"No space left.*resumes from the beginning"),
        ):
            run.save_model(write)
        assert not run.finished

    @pytest.mark.parametrize(
        ("damage", "found"),
        [
            (lambda model: (model / "weights").unlink(), "weights is missing"),
            (lambda model: (model / "weights").write_text(""), "weights has 0 bytes instead of 1"),
            (lambda model: [path.unlink() for path in model.iterdir()], "config.json is missing"),
            (lambda model: (model / "weights").write_text("v"), "the content of weights has changed"),
        ],
    )
    def test_one_that_was_damaged_is_named(self, run: RunDirectory, damage: Any, found: str):
        with run.opened(RECIPE):
            step(run)
            run.save_model(self.write)
        (run.model / "notes.txt").write_text("mine")
        with run.opened(RECIPE):
            run.check_model(contents=True)
            damage(run.model)
            with pytest.raises(CheckpointError, match=f"not as the run saved it: {found}.*delete"):
                run.check_model(contents=True)

    def test_without_its_weights_it_stays_finished(self, run: RunDirectory):
        with run.opened(RECIPE):
            run.save_model(self.write)
        run.delete_leftovers(weights=("weight*",), keep_checkpoints=True)
        with run.opened(RECIPE):
            run.check_model(contents=True)
        assert [path.name for path in run.model.iterdir()] == ["config.json"]
