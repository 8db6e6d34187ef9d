"""A checkpoint that is not as it was written is never used, be it one bit that was flipped."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradwise as gw
from gradwise.data import Collator
from gradwise.folders import MARKER, mark, read_marker
from gradwise.methods.baselines import LossTop
from gradwise.recipe import SignalSettings
from gradwise.session import Session
from gradwise.training.checkpoint import STATE, check_whole, checkpoints, is_finished, last_whole
from tests.conftest import same_weights

RECIPE = gw.Recipe(select=LossTop(fraction=0.5), layers=gw.Grass(active=2, period=2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with three checkpoints; every test copies it."""
    return tmp_path_factory.mktemp("whole") / "out"


@pytest.fixture
def make(
    tiny_llama: Callable[..., Any], arguments: Callable[..., Any], speeches: Any, whole: Path, tmp_path: Path
) -> Callable[..., gw.Trainer]:
    def make(recipe: gw.Recipe = RECIPE, name: str = "out", **changes: Any) -> gw.Trainer:
        saving = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
        return gw.Trainer(
            tiny_llama(vocab_size=512),
            arguments(name, **saving | changes),
            Collator(0),
            speeches.select(range(24)),
            speeches.select(range(24, 28)),
            recipe=recipe,
        )

    if not whole.exists():
        trainer = make(name="first")
        trainer.train()
        shutil.copytree(tmp_path / "first", whole)
    shutil.copytree(whole, tmp_path / "out")
    return make


def files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.iterdir() if path.is_file())


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # every example puts the bit back
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(whole: Path, make: Any, data: Any):
    checkpoint = checkpoints(whole)[-1]
    path = data.draw(st.sampled_from([path for path in files(checkpoint) if path.stat().st_size]))
    bit = data.draw(st.integers(0, 8 * path.stat().st_size - 1))
    check_whole(checkpoint)
    flip(path, bit)
    try:
        with pytest.raises(
            gw.CheckpointError, match=r"is damaged|has changed|was written by|not written to its"
        ):
            check_whole(checkpoint)
        found, passed_over = last_whole(whole)
        assert found == checkpoints(whole)[-2]
        assert len(passed_over) == 1
    finally:
        flip(path, bit)
    assert last_whole(whole)[0] == checkpoint


DAMAGES = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_no_damaged_file_goes_unnoticed(make: Any, tmp_path: Path, damage: Any):
    out = tmp_path / "out"
    for name in [path.name for path in files(checkpoints(out)[-1])]:
        copy = tmp_path / "copy"
        shutil.copytree(out, copy)
        damage(checkpoints(copy)[-1] / name)
        with pytest.raises(gw.CheckpointError):
            check_whole(checkpoints(copy)[-1])
        assert last_whole(copy)[0] == checkpoints(copy)[-2]
        shutil.rmtree(copy)


def test_the_one_before_is_resumed_from_and_ends_alike(make: Any, whole: Path, tmp_path: Path, caplog: Any):
    """The last checkpoint is taken again over the damaged one."""
    out = tmp_path / "out"
    expected = (checkpoints(whole)[-1] / "model.safetensors").read_bytes()
    flip(checkpoints(out)[-1] / "optimizer.pt", 4242)
    trainer = make()
    trainer.train(resume_from_checkpoint=True)
    assert str(trainer.session.resumed_from).endswith("checkpoint-4")
    assert "the content of optimizer.pt has changed since it was written" in caplog.text
    check_whole(checkpoints(out)[-1])
    assert (checkpoints(out)[-1] / "model.safetensors").read_bytes() == expected
    flip(checkpoints(out)[-1] / "model.safetensors", 4242)
    with pytest.raises(gw.CheckpointError, match=r"model.safetensors has changed.*Use an earlier one"):
        make().train(resume_from_checkpoint=str(checkpoints(out)[-1]))


def test_the_best_one_is_checked_before_it_is_taken(make: Any, tmp_path: Path, caplog: Any):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1.0}
    trainer = make(name="best", **best)
    inner, last = trainer._load_best_model, {}

    def damaged() -> None:
        flip(Path(trainer.state.best_model_checkpoint) / "model.safetensors", 4242)
        last.update({name: value.clone() for name, value in trainer.model.state_dict().items()})
        inner()

    trainer._load_best_model = damaged
    trainer.train()
    assert "The model of the last step is kept instead of the best one" in caplog.text
    model = trainer.model.state_dict()
    assert all(model[name].equal(value) for name, value in last.items())


def test_one_of_a_newer_version_is_refused(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    for checkpoint in checkpoints(out):
        marker = read_marker(checkpoint)
        assert marker is not None
        with monkeypatch.context() as newer:
            newer.setattr("gradwise.folders.FORMAT", 3)
            mark(checkpoint, "checkpoint", complete=True, digests=marker["digests"])
    with pytest.raises(gw.CheckpointError, match=r"checkpoint-6 was written by a newer gradwise \(format 3"):
        make().train(resume_from_checkpoint=True)


class TestSettings:
    """What a later version added has its default in checkpoints of an earlier one."""

    @pytest.fixture
    def older(self, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Checkpoints of a version that had no such settings yet."""
        decisions, states = Session.decisions, gw.LayerSwitch.state_dict

        def fewer(session: Session) -> dict[str, Any]:
            settings = json.loads(json.dumps(decisions(session)))
            del settings["layers"]["smoothing"], settings["select"]["count"], settings["signals"]
            return settings

        def smaller(switch: gw.LayerSwitch) -> dict[str, Any]:
            state = states(switch)
            del state["policy"]["smoothing"]
            return state

        with monkeypatch.context() as patched:
            patched.setattr(Session, "decisions", fewer)
            patched.setattr(gw.LayerSwitch, "state_dict", smaller)
            make(name="older", max_steps=2).train()

    def test_the_same_resumes(self, make: Any, older: None, whole: Path, tmp_path: Path):
        stored = json.loads((tmp_path / "older" / "checkpoint-2" / STATE).read_text())
        assert "smoothing" not in stored["layers"]["policy"]
        trainer = make(name="older", max_steps=2)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 2

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"layers": gw.Grass(active=2, period=2, smoothing=0.25)}, "with layers = .*'smoothing': 0.5"),
            ({"signals": SignalSettings(batch_tokens=99)}, "with signals = .*'batch_tokens': 4096"),
        ],
    )
    def test_others_do_not(self, make: Any, older: None, changed: dict[str, Any], named: str):
        from dataclasses import replace

        with pytest.raises(gw.CheckpointError, match=named):
            make(replace(RECIPE, **changed), name="older", max_steps=2).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b""), "it was cut short"),
        (lambda path: path.unlink(), "it was cut short"),
        (lambda path: path.write_bytes(b"\xff" * 9 + b"\n" + path.read_bytes()), r"is damaged \(line 1: "),
    ],
)
def test_a_damaged_record(make: Any, tmp_path: Path, name: str, damage: Any, said: str):
    damage(tmp_path / "out" / name)
    with pytest.raises(gw.CheckpointError, match=rf"{name} .*{said}"):
        make().train(resume_from_checkpoint=True)


def test_a_damaged_state_is_no_state(make: Any, tmp_path: Path):
    """Written over by somebody who kept the digests right."""
    from gradwise.atomic import sync_files

    for checkpoint in checkpoints(tmp_path / "out"):
        (checkpoint / STATE).write_text("{}")
        digests = {name: found for name, found in sync_files(checkpoint).items() if name != MARKER}
        mark(checkpoint, "checkpoint", complete=True, digests=digests)
        assert is_finished(checkpoint)
    with pytest.raises(gw.CheckpointError, match=r"gradwise.json is damaged"):
        make().train(resume_from_checkpoint=True)


def test_the_plain_run_is_alike(make: Any, whole: Path, tmp_path: Path):
    trainer = make(name="again")
    trainer.train()
    loaded = make(name="loaded")
    loaded._load_from_checkpoint(str(checkpoints(whole)[-1]))
    assert same_weights(trainer.model, loaded.model)
