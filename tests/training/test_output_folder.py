"""A trainer's folders may hold the user's files; none of them is ever overwritten or deleted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import Trainer as PlainTrainer
from transformers import TrainerCallback

import gradwise as gw
from gradwise.atomic import TEMPORARY
from gradwise.data import Collator
from gradwise.folders import MARKER
from gradwise.training.checkpoint import checkpoints, delete, is_finished
from tests.test_folders import contents

SAVING = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}


@pytest.fixture
def make(
    tiny_llama: Callable[..., Any], arguments: Callable[..., Any], tmp_path: Path
) -> Callable[..., gw.Trainer]:
    data = Dataset.from_list(
        [{"input_ids": [1, 2, number], "labels": [1, 2, number]} for number in range(12)]
    )

    def make(name: str = "out", run_dir: Any = None, **changes: Any) -> gw.Trainer:
        settings = arguments(name, **SAVING | changes)
        return gw.Trainer(tiny_llama(), settings, Collator(0), data, run_dir=run_dir)

    return make


def refused(trainer: gw.Trainer, folder: Path, *words: str) -> None:
    """Before the first step, with everything in the folder left as it is."""
    before = contents(folder)
    with pytest.raises(gw.GradwiseError) as caught:
        trainer.train()
    assert all(word in str(caught.value) for word in words), caught.value
    assert trainer.state.global_step == 0
    assert contents(folder) == before


def test_the_users_files_are_no_hindrance_and_stay(make: Any, tmp_path: Path):
    out = tmp_path / "out"
    mine = ["README.md", "tokenizer.json", "runs/events.out.tfevents", "checkpoint-best/weights", "data/plan"]
    for name in mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    make().train()
    assert [path.name for path in checkpoints(out)] == ["checkpoint-3"]
    assert all((out / name).read_text() == "mine" for name in mine)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "plan/a"])
def test_but_not_under_the_names_that_are_written(make: Any, tmp_path: Path, name: str):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    refused(make(), tmp_path / "out", f"did not write ({name.split('/')[0]})")


@pytest.mark.parametrize("step", [2, 77])
@pytest.mark.parametrize("apart", [True, False])
def test_a_checkpoint_of_the_plain_trainer_stays_untouched(
    make: Any, tiny_llama: Any, arguments: Any, tmp_path: Path, step: int, apart: bool
):
    """Whatever its number, with files of the user's in it, beside a record of gradwise's or without one."""
    plain = PlainTrainer(tiny_llama(), arguments(max_steps=step))
    plain.state.global_step = step
    plain.save_model(str(tmp_path / "out" / f"checkpoint-{step}"))
    (tmp_path / "out" / f"checkpoint-{step}" / "thesis.tex").write_text("mine")
    trainer = make(run_dir=tmp_path / "record" if apart else None)
    refused(trainer, tmp_path / "out", f"checkpoint-{step} was not written by gradwise", "move it")


def test_one_that_appears_while_training_stays_too(make: Any, tmp_path: Path):
    class Appears(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                (tmp_path / "out" / "checkpoint-3").mkdir()
                (tmp_path / "out" / "checkpoint-3" / "mine").write_text("mine")

    trainer = make()
    trainer.add_callback(Appears())
    with pytest.raises(gw.RecipeError, match="checkpoint-3 was not written by gradwise"):
        trainer.train()
    assert (tmp_path / "out" / "checkpoint-3" / "mine").read_text() == "mine"
    assert is_finished(tmp_path / "out" / "checkpoint-2")


def test_files_in_our_checkpoints_survive_their_rotation_and_their_being_written_again(
    make: Any, tmp_path: Path
):
    first = tmp_path / "out" / "checkpoint-1"

    class Adds(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                (first / "below").mkdir()
                for name in ("notes.txt", "below/model.bak"):
                    (first / name).write_text("mine")

    trainer = make()
    trainer.add_callback(Adds())
    trainer.train()
    left = contents(first)
    assert set(left) == {"notes.txt", "below", "below/model.bak", MARKER}
    assert not is_finished(first)
    # A later run comes to the same step, and rotates again.
    delete(tmp_path / "out" / "checkpoint-3")
    make().train()
    assert {name: left[name] for name in left if name != MARKER} == {
        name: content for name, content in contents(first).items() if name != MARKER
    }


def test_what_was_begun_and_not_finished_is_deleted_but_for_the_users_files(make: Any, tmp_path: Path):
    from gradwise.training.checkpoint import begin

    torn = tmp_path / "out" / "checkpoint-9"
    begin(torn)
    for name in (
        "model.safetensors",
        "optimizer.pt",
        "rng_state_1.pth",
        "tokenizer.json",
        "trainer_state.json",
    ):
        (torn / name).write_text("half")
    (torn / "notes.txt").write_text("mine")
    make(max_steps=1).train()
    assert set(contents(torn)) == {"notes.txt", MARKER}


def test_two_writers_are_refused(make: Any, tmp_path: Path):
    """Also in one process; and whether they share the record, the checkpoints, or both."""
    messages = []

    class Meanwhile(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step:
                return
            for other in (
                make(),
                make("other", run_dir=tmp_path / "out"),
                make(run_dir=tmp_path / "elsewhere"),
            ):
                with pytest.raises(gw.RecipeError, match="Another process is writing to") as caught:
                    other.train()
                messages.append(str(caught.value))

    trainer = make()
    trainer.add_callback(Meanwhile())
    trainer.train()
    assert len(messages) == 3
    assert make().train(resume_from_checkpoint=True).global_step == 3


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_an_output_dir_that_is_no_folder(make: Any, tmp_path: Path, kind: str):
    path = tmp_path / "out"
    path.touch() if kind == "file" else path.symlink_to("nowhere")
    with pytest.raises(gw.RecipeError, match=r"output_dir is .*out, which is no folder"):
        make()
    with pytest.raises(gw.RecipeError, match=r"out is a (file|broken link), not a folder"):
        make("fine", run_dir=path).train()


def test_a_run_of_the_command_is_none_of_a_trainers(make: Any, tmp_path: Path):
    from gradwise.folders import claimed

    with claimed(tmp_path / "out", "run", ("recipe.yaml",)):
        (tmp_path / "out" / "recipe.yaml").touch()
    refused(make(), tmp_path / "out", "holds a training run, not a run of gradwise.Trainer")


@pytest.mark.parametrize("left", [[], [f"{TEMPORARY}1-{MARKER}"]])
def test_a_checkpoint_killed_before_it_was_marked_is_no_hindrance(make: Any, tmp_path: Path, left: list[str]):
    torn = tmp_path / "out" / "checkpoint-9"
    torn.mkdir(parents=True)
    for name in left:
        (torn / name).touch()
    make(max_steps=1).train()
    assert not torn.exists()
