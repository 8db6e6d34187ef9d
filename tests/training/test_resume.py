"""A run killed at any instant and resumed ends as one that was never killed: weights, plan, metrics, bit for
bit."""

import json
import multiprocessing
import os
import random
import re
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import gradwise as gw
from gradwise.data import Collator
from gradwise.run import train
from gradwise.training.checkpoint import checkpoints, is_finished, last_whole
from tests.conftest import ROOT, same_weights
from tests.disturbance import Disturbance
from tests.signals.processes import ended, start


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> dict[str, Any]:
    """Recipe sections for the story model on forty real speeches, eight of them held out."""
    folder = tmp_path_factory.mktemp("data")
    found = (stories.parent / "plays_train.jsonl").read_text().splitlines()[:48]
    (folder / "train.jsonl").write_text("\n".join(found[:40]) + "\n")
    (folder / "held_out.jsonl").write_text("\n".join(found[40:]) + "\n")
    return {
        "model": {"name": str(stories)},
        "data": {
            "train": str(folder / "train.jsonl"),
            "validation": str(folder / "held_out.jsonl"),
            "max_length": 64,
            "allow": {"cut": 1.0},
        },
    }


def recipe(
    sources: dict[str, Any], *, workers: int = 0, passes: int = 1, schedule: str = "linear", **sections: Any
) -> gw.Recipe:
    training = {
        "schedule": schedule,
        "epochs": 2,
        "batch_size": 4,
        "per_device_train_batch_size": 4 // passes,
        "learning_rate": 1e-3,
        "dataloader_num_workers": workers,
        "save_steps": 3,
        "logging_steps": 4,
        "save_total_limit": 2,
    }
    given = {"train": training, "layers": {"method": "grass", "active": 2, "period": 3, "probe": 1}}
    return gw.Recipe.from_dict({**sources, **given, **sections})


def run_whole(settings: gw.Recipe, out: Path) -> None:
    train(settings, out, tell=lambda _: None, progress=False)


def run_and_kill(settings: gw.Recipe, out: Path, step: int, delay: float) -> bool:
    """SIGKILL the run `delay` seconds after it has shown `step` steps; False when it ended
    before."""
    # Forked, so that a try costs no imports.
    process = multiprocessing.get_context("fork").Process(target=_in_own_group, args=(settings, out))
    process.start()
    assert process.pid is not None
    before = steps_shown(out)
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if steps_shown(out) != before and steps_shown(out) >= step:
            time.sleep(delay)
            break
        time.sleep(0.002)
    killed = process.is_alive()
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return killed


def _in_own_group(settings: gw.Recipe, out: Path) -> None:
    os.setpgid(0, 0)
    run_whole(settings, out)


def steps_shown(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.exists() else 0


def what_counts(out: Path) -> dict[str, Any]:
    """Everything a run leaves behind that must not depend on how often it was interrupted."""
    apart = ("resume", "finished")
    events = [line for line in lines(out / "events.jsonl") if line["event"] not in apart]
    return {
        "weights": next((out / "model").glob("*.safetensors")).read_bytes(),
        "plan": gw.Plan.load(out / "plan" / "plan.safetensors").digest,
        "metrics": lines(out / "metrics.jsonl"),
        "events": events,
    }


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    timed = ("seconds", "parts")
    return [{key: value for key, value in line.items() if key not in timed} for line in found]


SPEEDS = {"train": 0.01, "score": 0.003, "startup": 0.001}
GRACE = {"method": "grace", "candidates": "all", "speeds": SPEEDS}
D3 = {"method": "d3", "target_samples": 4, "overhead": 2.0}
OWN = str(ROOT / "src" / "gradwise" / "demo" / "assets" / "plays_held_out.jsonl")
"""Files of an annealing phase."""

TRIES = [
    {"workers": 0, "passes": 1},
    {"workers": 2, "passes": 1},
    {"workers": 0, "passes": 2},
    {"workers": 2, "passes": 2},
    {"workers": 0, "passes": 2, "layers": {"method": "grass", "active": 1, "period": 2, "state": "drop"}},
    {"workers": 2, "passes": 1, "layers": "all"},
    {"workers": 0, "passes": 1, "layers": {"method": "top", "embeddings": "sampled", "period": 2}},
    {"workers": 2, "passes": 2, "adapter": {"method": "lora", "r": 2, "lora_dropout": 0.1}, "layers": "all"},
    {"workers": 0, "passes": 1, "select": {"method": "random", "fraction": 0.5}, "order": "interleave"},
    {"workers": 2, "passes": 2, "select": {"method": "loss_top", "count": 30}, "order": "easy_first"},
    {"workers": 0, "passes": 1, "select": {**GRACE, "fraction": 0.5, "refresh_every": 2}},
    {
        "workers": 2,
        "passes": 2,
        "select": {**GRACE, "tokens": 900, "candidates": 30, "refresh_every": 3, "anchors": 0.2},
    },
    {
        "workers": 2,
        "passes": 2,
        "layers": "all",
        "adapter": {"method": "lora", "r": 2, "lora_dropout": 0.1},
        "select": {
            **GRACE,
            "count": 30,
            "refresh_every": 5,
            "importance": "alignment",
            "propagate": "value",
            "weighted": True,
        },
        "signals": {"grad_dim": 32},
    },
    {
        "workers": 2,
        "passes": 2,
        "schedule": "wsd",
        "anneal": {"method": "direct", "last": 0.5, "count": 6, "times": 2},
        "signals": {"grad_dim": 32},
    },
    {
        "workers": 0,
        "passes": 1,
        "layers": "all",
        "schedule": "wsd",
        "select": {**GRACE, "fraction": 0.5, "refresh_every": 2},
        "anneal": {
            "method": "direct",
            "objective": "paper",
            "pool": "selection",
            "last": 0.5,
            "precondition": True,
        },
    },
    {"workers": 2, "passes": 2, "order": {**D3, "units": "batches", "probes": 2}},
    {
        "workers": 0,
        "passes": 1,
        "order": {**D3, "units": "batches", "edges": "lookahead", "probes": 2},
        "schedule": "wsd",
        "select": {**GRACE, "fraction": 0.5, "refresh_every": 3},
        "anneal": {"method": "direct", "last": 0.5},
        "signals": {"grad_dim": 32},
    },
    {
        "workers": 2,
        "passes": 1,
        "order": {**D3, "units": "clusters", "probes": 2},
        "signals": {"grad_dim": 32},
    },
    {"workers": 0, "passes": 1, "order": {**D3, "units": "samples", "probes": 1}, "layers": "all"},
    {
        "workers": 2,
        "passes": 2,
        "schedule": "wsd",
        "anneal": {"method": "direct", "last": 0.5, "data": OWN, "share": 0.5, "times": 2},
        "signals": {"grad_dim": 32},
    },
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [pytest.param(number, marks=[pytest.mark.exhaustive] if number else []) for number in range(len(TRIES))],
)
def test_killed_and_resumed_is_never_killed(sources: dict[str, Any], tmp_path: Path, number: int) -> None:
    settings = recipe(sources, **TRIES[number])
    run_whole(settings, tmp_path / "whole")
    expected = what_counts(tmp_path / "whole")
    steps = sum("loss" in line for line in expected["metrics"])
    rng = random.Random(number)
    kills = 0
    for _ in range(2):
        # Steps are shown every fourth; the delay then lands anywhere in the following ones and in their
        # checkpoints.
        kills += run_and_kill(settings, tmp_path / "killed", rng.randrange(0, steps - 4), rng.random() * 0.15)
    assert kills, "no kill came before the end"
    run_whole(settings, tmp_path / "killed")
    assert what_counts(tmp_path / "killed") == expected


@pytest.mark.exhaustive
def test_all_four_killed_ten_times_is_never_killed(sources: dict[str, Any], tmp_path: Path) -> None:
    settings = recipe(
        sources,
        schedule="wsd",
        select={**GRACE, "fraction": 0.5, "refresh_every": 3},
        order={**D3, "units": "batches", "probes": 1},
        anneal={"method": "direct", "last": 0.5, "count": 8},
        signals={"grad_dim": 32},
    )
    run_whole(settings, tmp_path / "whole")
    expected = what_counts(tmp_path / "whole")
    kinds = {event["event"] for event in expected["events"]}
    assert kinds >= {"plan", "refresh", "order", "layers", "anneal"}
    steps = sum("loss" in line for line in expected["metrics"])
    rng = random.Random(0)
    kills = [
        run_and_kill(settings, tmp_path / "killed", rng.randrange(0, steps - 3), rng.random() * 0.15)
        for _ in range(10)
    ]
    assert any(kills), "no kill came before the end"
    run_whole(settings, tmp_path / "killed")
    assert what_counts(tmp_path / "killed") == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_operations_on_files_is_never_killed(sources: dict[str, Any], tmp_path: Path) -> None:
    """Kills that timers rarely hit: between the creation of a folder and its marker, for example."""
    settings, out = recipe(sources, **TRIES[0]), tmp_path / "killed"
    run_whole(settings, tmp_path / "whole")

    def killed(at: int) -> None:
        Disturbance(out, kill_at=at)
        run_whole(settings, out)

    # Each run resumes the one before, and writes a checkpoint in about 40 operations.
    statuses = [ended(start(killed, at)) for at in range(40, 124, 6)]
    assert statuses.count(-signal.SIGKILL) >= 10
    run_whole(settings, out)
    assert what_counts(out) == what_counts(tmp_path / "whole")
    assert not list(out.rglob(".gradwise-tmp-*"))


def test_a_checkpoint_cut_short_is_passed_over_or_named(sources: dict[str, Any], tmp_path: Path) -> None:
    settings = recipe(sources)
    run_whole(settings, tmp_path / "whole")
    out = tmp_path / "cut"
    while not run_and_kill(settings, out, 12, 0.0):
        pytest.fail("the run ended before it could be killed")
    messages: list[str] = []
    found = [path for path in checkpoints(out / "checkpoints") if is_finished(path)]
    assert len(found) == 2
    weights = found[-1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    earlier, sentences = last_whole(out / "checkpoints")
    assert earlier == found[0] and "model.safetensors has" in " ".join(sentences)
    train(settings, out, tell=messages.append, progress=False)
    assert any("damaged" in sentence for sentence in messages)
    assert what_counts(out) == what_counts(tmp_path / "whole")


@pytest.mark.parametrize("room", [200_000, 1_500_000])
def test_a_full_disk_is_named_and_nothing_is_lost(sources: dict[str, Any], tmp_path: Path, room: int) -> None:
    """No file may grow beyond `room` bytes: the weights (1.0 MB) fail, or later the optimizer's state."""
    layers = {"method": "round_robin", "active": 2, "period": 2, "embeddings": "always"}
    settings = recipe(sources, layers=layers)
    run_whole(settings, tmp_path / "whole")
    reader, writer = multiprocessing.get_context("fork").Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_with_room_for, args=(room, settings, tmp_path / "full", writer))
    process.start()
    message = reader.recv()
    process.join()
    assert re.match(
        r"StorageError: .*checkpoint-3 could not be written: .*(GiB|MiB) free\)\. Make room and run the same "
        r"command again; it resumes from the beginning\.$",
        message,
    ), message
    run_whole(settings, tmp_path / "full")
    assert what_counts(tmp_path / "full") == what_counts(tmp_path / "whole")


def _with_room_for(room: int, settings: gw.Recipe, out: Path, writer: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        run_whole(settings, out)
        writer.send("finished")
    except BaseException as error:
        writer.send(f"{type(error).__name__}: {error}")


def test_when_no_checkpoint_is_whole_nothing_is_overwritten(sources: dict[str, Any], tmp_path: Path) -> None:
    settings = recipe(sources)
    assert run_and_kill(settings, tmp_path, 12, 0.0)
    for path in checkpoints(tmp_path / "checkpoints"):
        if is_finished(path):
            (path / "optimizer.pt").unlink()
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    with pytest.raises(gw.CheckpointError, match=r"optimizer.pt is missing.*No earlier one is whole"):
        run_whole(settings, tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before


def test_the_trainer_resumes_by_itself(story_model, arguments, speeches, tmp_path: Path) -> None:
    def make(name: str, **changes: Any) -> tuple[Any, gw.Trainer]:
        model = story_model()
        settings = arguments(name, save_strategy="steps", save_steps=5, **changes)
        made = gw.Trainer(model, settings, Collator(0), speeches, recipe=gw.Recipe(layers=gw.Grass(period=3)))
        return model, made

    model, whole = make("whole")
    whole.train()
    _, half = make("half")
    half.add_callback(_StopAt(7))
    half.train()
    resumed_model, resumed = make("half")
    resumed.train(resume_from_checkpoint=True)
    assert str(resumed.session.resumed_from).endswith("checkpoint-5")
    assert same_weights(model, resumed_model)
    with pytest.raises(gw.CheckpointError, match="no whole checkpoint"):
        make("none")[1].train(resume_from_checkpoint=True)
    with pytest.raises(gw.CheckpointError, match="no checkpoint at"):
        make("none")[1].train(resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_a_checkpoint_at_an_epochs_end_holds_what_was_due_there(
    story_model, arguments, speeches, tmp_path: Path
) -> None:
    """The evaluation at the epoch's end comes before the checkpoint, so nobody can resume behind it."""

    def make() -> tuple[Any, gw.Trainer]:
        model = story_model()
        settings = arguments(save_strategy="steps", save_steps=10, eval_strategy="epoch", num_train_epochs=2)
        held_out = speeches.select(range(40, 48))
        return model, gw.Trainer(model, settings, Collator(0), speeches.select(range(40)), held_out)

    whole_model, whole = make()
    whole.train()
    expected = lines(tmp_path / "out" / "metrics.jsonl")
    assert [line["step"] for line in expected if "eval_loss" in line] == [10, 20]
    resumed_model, resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-10"))
    assert lines(tmp_path / "out" / "metrics.jsonl") == expected
    assert same_weights(whole_model, resumed_model)


def test_a_checkpoint_of_other_data_is_refused(story_model, arguments, speeches) -> None:
    settings = {"save_strategy": "steps", "save_steps": 5}
    gw.Trainer(story_model(), arguments(**settings), Collator(0), speeches).train()
    other = gw.Trainer(story_model(), arguments(**settings), Collator(0), speeches.select(range(60)))
    with pytest.raises(gw.CheckpointError, match="trained on 80 samples, the data now have 60"):
        other.train(resume_from_checkpoint=True)


def test_a_plan_of_ones_own_resumes(story_model, arguments, speeches, tmp_path: Path) -> None:
    """Though it does not name the last sample of the data."""

    def make(name: str, indices: list[int]) -> gw.Trainer:
        own = arguments(name, save_strategy="steps", save_steps=1)
        return gw.Trainer(story_model(), own, Collator(0), speeches, plan=gw.Plan.of([indices]))

    whole, resumed = (make("out", [5, 5, 7, 1, 0, 2, 3, 4]) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert same_weights(whole.model, resumed.model)
    with pytest.raises(gw.PlanError, match="names sample 90, and the data have 80"):
        make("beyond", [90, 1, 2, 3]).train()


@pytest.mark.parametrize("length", [{"max_steps": 13}, {"num_train_epochs": 1.5}])
def test_resumed_from_the_last_step_nothing_more_is_trained(
    story_model, arguments, speeches, tmp_path: Path, length: dict[str, Any]
) -> None:
    def make() -> gw.Trainer:
        own = arguments(save_strategy="steps", save_steps=5, eval_strategy="epoch", **length)
        own.lr_scheduler_type = "constant"
        return gw.Trainer(
            story_model(), own, Collator(0), speeches.select(range(32)), speeches.select(range(8))
        )

    whole = make()
    whole.train()
    steps = whole.state.global_step
    expected = lines(tmp_path / "out" / "metrics.jsonl")
    assert steps % whole.session.schedule.steps_per_epoch
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{steps}"))
    assert resumed.state.global_step == steps
    assert same_weights(whole.model, resumed.model)
    assert lines(tmp_path / "out" / "metrics.jsonl") == expected


def test_an_earlier_runs_checkpoints_are_not_trained_over(story_model, arguments, speeches) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 1}
    gw.Trainer(story_model(), arguments(**saving), Collator(0), speeches).train()
    with pytest.raises(gw.CheckpointError, match="checkpoints of an earlier run"):
        gw.Trainer(story_model(), arguments(**saving), Collator(0), speeches).train()


CHANGED = {
    "order": {"order": {"method": "given"}},
    "select": {"select": {"method": "random", "count": 80}},
    "layers": {"layers": {"method": "grass"}},
    "seed": {"seed": 5},
    "signals": {"signals": {"grad_dim": 64}},
}


@pytest.mark.parametrize("name", CHANGED)
def test_resuming_with_other_decisions_is_refused(
    story_model, arguments, speeches, tmp_path: Path, name: str
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 10}
    gw.Trainer(story_model(), arguments(**saving), Collator(0), speeches).train()
    recipe = gw.Recipe.from_dict(CHANGED[name])
    other = gw.Trainer(story_model(), arguments(**saving), Collator(0), speeches, recipe=recipe)
    with pytest.raises(gw.CheckpointError, match=f"was taken with {name} ="):
        other.train(resume_from_checkpoint=True)
    longer = gw.Trainer(story_model(), arguments(**saving, num_train_epochs=2), Collator(0), speeches)
    with pytest.raises(gw.CheckpointError, match="planned for 1 epochs"):
        longer.train(resume_from_checkpoint=True)
    wider = arguments(**saving, per_device_train_batch_size=8)
    with pytest.raises(gw.CheckpointError, match="another batch size"):
        gw.Trainer(story_model(), wider, Collator(0), speeches).train(
            resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-10")
        )


class _StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step
