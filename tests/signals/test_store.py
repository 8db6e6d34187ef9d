"""Signals on disk: the same as in memory; killed at any instant and gone on with, the same bytes."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from gradwise import SignalError, Signals
from gradwise.data import Collator
from gradwise.signals import collect
from gradwise.signals.column_buffer import Column, stored
from gradwise.signals.store import Store
from tests.signals.processes import Slow, contents, ended, kill_self, run, same_arrays, start
from tests.signals.zoo import make, samples

POOL = samples(24)
POOL[5], POOL[11] = {"input_ids": [], "labels": []}, {"input_ids": [7], "labels": [7]}
QUANTITIES: Any = ("loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*samples set aside:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def collected(store: Path | None, pool: Any = POOL, model: Any = None, **options: Any) -> Signals:
    settings: Any = {"want": QUANTITIES, "grad_dim": 16, "batch_tokens": 40, "progress": False} | options
    return collect(make("Llama") if model is None else model, pool, store=store, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an uninterrupted pass."""
    path = tmp_path_factory.mktemp("whole") / "store"
    collected(path)
    return path


class TestContents:
    def test_same_as_in_memory(self, whole: Path):
        in_memory, on_disk = collected(None), Signals.open(whole)
        same_arrays(in_memory, on_disk)
        assert in_memory.ok is not None
        assert not in_memory.ok[[5, 11]].any()
        assert np.isnan(on_disk.loss[[5, 11]]).all()  # type: ignore[index]
        assert len(on_disk) == len(POOL)

    def test_returned_and_opened_are_the_same(self, tmp_path: Path):
        returned = collected(tmp_path / "store")
        opened = Signals.open(str(tmp_path / "store"))
        same_arrays(returned, opened)
        assert returned.seconds == opened.seconds > 0

    def test_memory_mapped_and_read_only(self, whole: Path):
        signals = Signals.open(whole)
        for name in QUANTITIES:
            values = getattr(signals, name)
            assert isinstance(values, np.memmap)
            with pytest.raises(ValueError, match="read-only"):
                values[0] = 0

    def test_files_are_plain_numpy(self, whole: Path):
        assert np.load(whole / "grad.npy").shape == (len(POOL), 16)
        assert not list(whole.glob(".manifest*"))

    def test_a_finished_pass_is_not_made_again(self, whole: Path):
        model, passes = make("Llama"), []
        model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
        before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
        same_arrays(collected(whole, model=model), Signals.open(whole))
        assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before
        assert len(passes) <= 14  # the engine check: a pair, the longest, the first and the last batch

    def test_a_list_and_a_dataset_are_the_same_data(self, whole: Path, tmp_path: Path):
        """The store of one is taken up with the other, rows shuffled and chosen by index included."""
        before = contents(whole)
        dataset = Dataset.from_list(POOL)
        same_arrays(collected(None, dataset), collected(None))
        collected(whole, dataset)
        shuffled = dataset.select(range(24)[::-1]).select(range(24)[::-1])
        collected(whole, shuffled)
        collected(whole, dataset.with_format("torch"))
        assert contents(whole) == before

    def test_of_more_samples_than_are_read_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("gradwise.signals.samples.CHUNK", 7)
        collected(tmp_path / "store", want="loss")
        collected(tmp_path / "store", Dataset.from_list(POOL), want="loss")

    @pytest.mark.parametrize("most", [1, 7])
    def test_a_disk_that_takes_a_part_at_a_time(
        self, tmp_path: Path, whole: Path, most: int, monkeypatch: pytest.MonkeyPatch
    ):
        whole_write = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda file, content, at: whole_write(file, content[:most], at))
        collected(tmp_path / "store")
        assert contents(tmp_path / "store") == contents(whole)

    def test_the_manifest_says_what_the_rows_depend_on(self, whole: Path):
        request = json.loads((whole / "manifest.json").read_text())["request"]
        assert request["size"] == len(POOL)
        assert request["columns"]["grad"] == ["float32", [16]]
        assert request["projection"] == {"size": 16, "seed": 0, "side": 128}
        assert {"model", "weights", "data", "scope", "batch_tokens"} <= request.keys()


class TestHalfPrecision:
    @pytest.fixture(scope="class")
    @classmethod
    def grads(cls) -> Any:
        return collected(None, want="grad", grad_dim=None, parameters="*up_proj.weight").grad

    @pytest.mark.parametrize("store", [False, True])
    def test_rows_beyond_its_range_are_named(self, grads: Any, store: bool, tmp_path: Path):
        """Gradients scaled (by 1 / (sqrt(v) + eps)) so that half of the rows pass 65,504."""
        largest = np.abs(grads).max(axis=1)
        factor = 65504 / float(np.nanmedian(largest))
        moments = {name: torch.full((24, 16), factor**-2) for name in _up_names()}
        signals = collected(
            tmp_path / "store" if store else None,
            want="grad",
            grad_dim=None,
            grad_dtype="float16",
            parameters="*up_proj.weight",
            precondition=moments,
        )
        beyond = np.flatnonzero(largest * factor > 65520)
        assert 0 < len(beyond) < 22
        assert signals.grad is not None
        assert signals.grad.dtype == np.float16
        assert signals.ok is not None
        assert np.flatnonzero(~signals.ok).tolist() == sorted({5, 11, *beyond.tolist()})
        kind = "grad beyond float16; give grad_dtype='float32'"
        assert signals.problems[kind].tolist() == beyond.tolist()

    def test_below_its_range_too(self, grads: Any):
        moments = {name: torch.full((24, 16), 1e18) for name in _up_names()}
        with pytest.raises(SignalError, match=r"22 grad beyond float16; give grad_dtype='float32'"):
            collected(
                None,
                want="grad",
                grad_dim=None,
                grad_dtype="float16",
                parameters="*up_proj.weight",
                precondition=moments,
            )

    def test_within_it(self):
        half, full = (collected(None, grad_dtype=dtype) for dtype in ("float16", "float32"))
        assert half.ok is not None
        assert half.ok.sum() == 22
        np.testing.assert_allclose(half.grad[half.ok], full.grad[half.ok], atol=1e-3)  # type: ignore[index]
        assert np.array_equal(half.grad_norm, full.grad_norm, equal_nan=True)  # type: ignore[arg-type]

    def test_which_rows_a_type_holds(self):
        values = np.array([[0, 0], [1, 2], [7e4, 1], [1, 1e-9], [1e-9, 1e-9], [np.nan, 1], [-65504, 3]])
        kept, held = stored(values, Column("float16", (2,)))
        assert held.tolist() == [True, True, False, True, False, True, True]
        assert kept.dtype == np.float16
        assert stored(values, Column("float32", (2,)))[1].all()


def _up_names() -> list[str]:
    return [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(2)]


class TestRefused:
    @pytest.fixture
    def store(self, whole: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(whole, tmp_path / "store"))

    def other_weights(self) -> Any:
        model = make("Llama")
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-6
        return model

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"seed": 1}, r"projection was .*'seed': 0.*, now .*'seed': 1"),
            ({"grad_dim": 17}, "columns was"),
            ({"want": ("loss", "grad")}, "columns was"),
            ({"grad_dtype": "float16"}, "columns was"),
            ({"parameters": "all"}, "scope was 14 parameters.*, now"),
            ({"batch_tokens": 41}, "batch_tokens was 40, now 41"),
            ({"pooling": "last"}, "pooling was labels, now last"),
            ({"layer": 0}, "layer was None, now 0"),
            ({"pool": POOL[:-1]}, "size was 24, now 23"),
            ({"pool": [*POOL[:-1], POOL[0]]}, "data was"),
            ({"pool": [*POOL[:-2], POOL[-1], POOL[-2]]}, "data was"),
        ],
        ids=str,
    )
    def test_another_scoring_run(self, store: Path, change: Any, named: str):
        before = contents(store)
        with pytest.raises(SignalError, match=f"holds signals of another request: .*{named}.*another folder"):
            collected(store, **change)
        assert contents(store) == before

    def test_other_weights(self, store: Path):
        with pytest.raises(SignalError, match="another request: weights was"):
            collected(store, model=self.other_weights())

    def test_another_configuration_of_the_same_weights(self, store: Path):
        model = make("Llama")
        model.config.rms_norm_eps = 1e-3
        with pytest.raises(SignalError, match="another request: configuration was"):
            collected(store, model=model)

    def test_another_collator(self, tmp_path: Path):
        def shorter(rows: list[Any]) -> Any:
            batch = Collator(0)(rows)
            batch["labels"][:, :2] = -100
            return batch

        pool = [row for row in POOL if len(row["input_ids"]) > 4]
        collected(tmp_path / "store", pool, want=("loss",))
        with pytest.raises(SignalError, match="collator was None, now"):
            collected(tmp_path / "store", pool, want=("loss",), collator=shorter)
        alone = collected(None, pool, want=("loss",), collator=shorter)
        for _ in range(2):  # found again
            again = collected(tmp_path / "other", pool, want=("loss",), collator=shorter)
            assert np.array_equal(np.asarray(again.loss), np.asarray(alone.loss))

    def test_a_collator_that_draws_at_random_finds_its_store(self, tmp_path: Path):
        def masked(rows: list[Any]) -> Any:
            batch = Collator(0)(rows)
            batch["labels"][torch.rand(batch["labels"].shape) < 0.3] = -100
            return batch

        pool = [row for row in POOL if len(row["input_ids"]) > 4]
        first = collected(tmp_path / "store", pool, want=("loss",), collator=masked)
        again = collected(tmp_path / "store", pool, want=("loss",), collator=masked)
        assert np.array_equal(np.asarray(again.loss), np.asarray(first.loss), equal_nan=True)

    def test_a_plain_model_and_its_collator_leave_no_trace(self, whole: Path):
        """Or no store of an earlier version would be found again."""
        request = json.loads((whole / "manifest.json").read_text())["request"]
        assert not {"adapters", "collator"} & request.keys()

    def test_another_adapter_of_the_same_model(self, tmp_path: Path):
        peft = pytest.importorskip("peft")
        options: dict[str, Any] = {"r": 4, "init_lora_weights": False, "target_modules": ["q_proj"]}
        model = peft.get_peft_model(make("Llama"), peft.LoraConfig(**options), "a")
        model.add_adapter("b", peft.LoraConfig(**options))
        first = collected(tmp_path / "store", model=model, want=("loss",))
        model.set_adapter("b")
        with pytest.raises(SignalError, match="another request: adapters was"):
            collected(tmp_path / "store", model=model, want=("loss",))
        with model.disable_adapter(), pytest.raises(SignalError, match="another request: adapters was"):
            collected(tmp_path / "store", model=model, want=("loss",))
        model.set_adapter("a")
        again = collected(tmp_path / "store", model=model, want=("loss",))
        assert np.array_equal(np.asarray(again.loss), np.asarray(first.loss), equal_nan=True)

    def test_other_moments(self, tmp_path: Path):
        moments = {name: torch.ones(24, 16) for name in _up_names()}
        options: Any = {"parameters": "*up_proj.weight", "precondition": moments}
        collected(tmp_path / "store", **options)
        moments[_up_names()[0]][0, 0] = 2
        with pytest.raises(SignalError, match="precondition was"):
            collected(tmp_path / "store", **options)

    def test_a_refusal_lets_go_of_the_lock(self, store: Path):
        with pytest.raises(SignalError, match="another request"):
            collected(store, seed=1)
        run(collected, store)

    def test_opening_what_is_not_there(self, tmp_path: Path):
        with pytest.raises(SignalError, match=r"holds no signals \(no manifest.json\); make them with"):
            Signals.open(tmp_path)

    def test_opening_what_is_not_complete(self, store: Path):
        manifest = store / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "complete": False}))
        done = store / "done"
        done.write_bytes(b"\0" + done.read_bytes()[1:])
        count = len(done.read_bytes())
        with pytest.raises(
            SignalError, match=f"stopped after {count - 1} of {count} blocks; run the same command"
        ):
            Signals.open(store)

    @pytest.mark.parametrize("name", ["notes.txt", "loss.npy"])
    def test_a_folder_with_other_files(self, tmp_path: Path, name: str):
        """Arrays of somebody else's too: they could bear the same names."""
        (tmp_path / name).write_text("mine")
        with pytest.raises(SignalError, match=rf"holds files that gradwise did not write \({name}\)"):
            collected(tmp_path)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]

    def test_a_file_where_the_folder_should_be(self, tmp_path: Path):
        (tmp_path / "store").write_text("mine")
        with pytest.raises(SignalError, match=r"store is a file, not a folder"):
            collected(tmp_path / "store")

    def test_a_manifest_that_is_none(self, store: Path):
        (store / "manifest.json").write_text("{")
        with pytest.raises(SignalError, match=r"manifest.json is damaged"):
            collected(store)

    def test_too_little_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("gradwise.signals.store.free_bytes", lambda _: 100)
        with pytest.raises(
            SignalError, match=r"signals need \d\.\d KiB in .*, which has 100 bytes free; give a smaller"
        ):
            collected(tmp_path / "store")
        assert not (tmp_path / "store").exists()
        monkeypatch.undo()
        collected(tmp_path / "store")


# The first row of all, one within the first batch, the end of a batch, and the last rows.
FEW_WRITES = [(1, True), (3, False), (26, True), (140, True)]
WRITES = [
    pytest.param(write, half, marks=[] if (write, half) in FEW_WRITES else pytest.mark.exhaustive)
    for write in (1, 2, 3, 10, 25, 26, 60, 100, 140)
    for half in (False, True)
]


@pytest.mark.slow
class TestKilled:
    """SIGKILL, then the same call again."""

    def test_at_random_instants(self, tmp_path: Path, whole: Path):
        store, rng, kills = tmp_path / "store", random.Random(0), 0
        for _ in range(12):
            process = start(_slowly, store, 0.02)
            time.sleep(rng.uniform(0.02, 0.35))
            process.kill()
            kills += ended(process) == -9
            manifest = store / "manifest.json"
            if manifest.exists() and not json.loads(manifest.read_text())["complete"]:
                with pytest.raises(SignalError, match="stopped after"):
                    Signals.open(store)
            elif manifest.exists():  # a quick machine gets through between two kills
                break
        assert kills
        collected(store)
        assert contents(store) == contents(whole)

    @pytest.mark.parametrize(("write", "half"), WRITES)
    def test_in_the_middle_of_a_write(self, tmp_path: Path, whole: Path, write: int, half: bool):
        """Before the n-th row, or with half of it on the disk; then again at the next; then through."""
        store = tmp_path / "store"
        for number in (write, min(write, 3)):
            assert ended(start(_killed_at_write, store, number, half)) == -9
        collected(store)
        assert contents(store) == contents(whole)

    @pytest.mark.parametrize(
        ("step", "after"),
        [
            ("_make_array", True),
            ("write_json", False),
            ("_check_arrays", False),
            pytest.param("_make_array", False, marks=pytest.mark.exhaustive),
            pytest.param("write_json", True, marks=pytest.mark.exhaustive),
            pytest.param("_check_arrays", True, marks=pytest.mark.exhaustive),
        ],
    )
    def test_while_the_store_is_made(self, tmp_path: Path, whole: Path, step: str, after: bool):
        store = tmp_path / "store"
        assert ended(start(_killed_at_step, store, step, after)) == -9
        collected(store)
        assert contents(store) == contents(whole)

    def test_what_was_done_is_not_done_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        store, measured = tmp_path / "store", []
        assert ended(start(_killed_at_write, store, 140, False)) == -9
        done = np.frombuffer((store / "done").read_bytes(), dtype=np.uint8)
        assert 0 < done.sum() < len(done)
        inner = Store.write

        def counted(self: Store, block: int, rows: Any, values: Any) -> None:
            measured.append(block)
            inner(self, block, rows, values)

        monkeypatch.setattr(Store, "write", counted)
        collected(store)
        assert measured == np.flatnonzero(done == 0).tolist()

    def test_time_adds_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("gradwise.signals.scoring_run.NOTE_EVERY", 0.0)
        store = tmp_path / "store"
        assert ended(start(_killed_at_write, store, 140, False, Slow(0.05))) == -9
        spent = json.loads((store / "manifest.json").read_text())["seconds"]
        assert spent > 0.05
        assert collected(store).seconds > spent


def _slowly(store: Path, seconds: float) -> None:
    collected(store, collator=Slow(seconds))


def _killed_at_write(store: Path, number: int, half: bool, collator: Any = None) -> None:
    writes, inner = [], os.pwrite

    def write(file: int, content: Any, at: int) -> int:
        writes.append(1)
        if len(writes) == number:
            if half:
                inner(file, content[: len(content) // 2], at)
            kill_self()
        return inner(file, content, at)

    os.pwrite = write  # type: ignore[assignment]
    collected(store, collator=collator)


def _killed_at_step(store: Path, step: str, after: bool) -> None:
    import gradwise.signals.store as module

    inner: Callable[..., Any] = getattr(module, step)

    def killed(*args: Any) -> None:
        if after:
            inner(*args)
        kill_self()

    setattr(module, step, killed)
    collected(store)


@pytest.mark.slow
def test_two_processes_on_one_store(tmp_path: Path, whole: Path):
    store = tmp_path / "store"
    process = start(_slowly, store, 0.4)
    while not (store / "manifest.json").exists():
        time.sleep(0.02)
    try:
        with pytest.raises(SignalError, match=r"Another process is writing to .*; wait for it"):
            collected(store)
    finally:
        process.kill()
        ended(process)
    collected(store)
    assert contents(store) == contents(whole)


@pytest.mark.slow
class TestMemory:
    """Rows go to the disk and do not stay in memory."""

    COLUMNS = {"grad": Column("float16", (256,)), "flags": Column("uint8", ())}  # noqa: RUF012

    def _grown(self, path: Path, rows: int) -> int:
        """Bytes that resident memory grew by while synthetic blocks were written, at most."""
        block = 500
        store = Store(path, {"size": rows}, rows, self.COLUMNS, rows // block)
        values = {"grad": np.ones((block, 256), dtype=np.float32), "flags": np.ones(block, dtype=np.uint8)}
        before = peak = _resident()
        for number in range(rows // block):
            places = np.arange(number, rows, rows // block, dtype=np.int64)
            store.write(number, places, values)
            peak = max(peak, _resident())
        store.release()
        return peak - before

    def test_does_not_grow_with_the_number_of_rows(self, tmp_path: Path):
        few, many = self._grown(tmp_path / "few", 20_000), self._grown(tmp_path / "many", 200_000)
        assert (tmp_path / "many" / "grad.npy").stat().st_size > 100e6
        assert many - few < 8 * 2**20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
