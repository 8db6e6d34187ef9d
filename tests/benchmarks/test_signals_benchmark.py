"""`benchmarks/signals*.py`: that what is measured is what is told; no times."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from gradwise.signals.sums import Projector

results: Any = importlib.import_module("results")
accuracy: Any = importlib.import_module("signals_accuracy")
cost: Any = importlib.import_module("signals_cost")
figure: Any = importlib.import_module("signals_figure")
peers: Any = importlib.import_module("signals_peers")
precondition: Any = importlib.import_module("signals_precondition")
store: Any = importlib.import_module("signals_store")
subjects: Any = importlib.import_module("signals_subjects")
tables: Any = importlib.import_module("signals_tables")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


@pytest.fixture(scope="module")
def stories() -> Any:
    return subjects.subject("stories", 6)


@pytest.fixture(scope="module")
def gradients(stories: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return accuracy.Gradients(*stories, tmp_path_factory.mktemp("gradients"))


# ---- accuracy ----------------------------------------------------------------------------------------------


def test_no_projection_has_no_error(gradients: Any) -> None:
    whole = np.concatenate([held.reshape(gradients.count, -1) for _, held in gradients], axis=1)
    assert max(map(abs, subjects.errors(whole, gradients.gram()))) < 1e-6


def test_errors_of_a_known_projection() -> None:
    z = np.array([[2.0, 0.0], [0.0, 1.0]])
    pairs, own, bias = subjects.errors(z, np.array([[1.0, 0.5], [0.5, 1.0]]))
    assert (pairs, bias) == (0.5, -0.5)
    assert own == pytest.approx(np.sqrt(9 / 2))


def test_formed_gradients_are_projected_as_the_engine_does(stories: Any, gradients: Any) -> None:
    model, samples = stories
    signals = gw.collect(model, samples, want="grad", grad_dim=256, progress=False)
    ours = gradients.projected({"it": Projector(256, 0)})["it"]
    assert signals.grad is not None
    np.testing.assert_allclose(ours, signals.grad, atol=1e-4 * np.abs(signals.grad).max())


def test_dense_errors_are_those_of_a_matrix_really_made(gradients: Any) -> None:
    gram, seeds = gradients.gram(), range(12)
    drawn = [subjects.errors(subjects.dense(gram, 256, seed), gram)[0] for seed in seeds]
    made = [subjects.errors(accuracy.multiplied(gradients, 256, seed), gram)[0] for seed in seeds]
    together = tables.together
    assert together(drawn) == pytest.approx(together(made), rel=0.25)
    assert together(drawn) == pytest.approx(256**-0.5, rel=0.25)


def test_dense_at_great_length_is_exact() -> None:
    gram = np.array([[2.0, 1.0], [1.0, 3.0]])
    assert max(map(abs, subjects.errors(subjects.dense(gram, 10**6, 0), gram))) < 0.01


def test_longer_projections_are_nearer(gradients: Any) -> None:
    found = accuracy.by_size(gradients, gradients.gram(), 0)["errors"]["gradwise"]
    assert list(found) == list(accuracy.SIZES)
    assert found[8192].own < found[256].own


# ---- cost and peers ----------------------------------------------------------------------------------------


def test_arms_are_timed_in_turn() -> None:
    calls: list[tuple[str, int]] = []
    arms = {name: (lambda number, name=name: calls.append((name, number))) for name in "ab"}
    seconds = subjects.in_turn(arms, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 2, "b": 2}


def test_every_arm_measures_what_its_name_says(stories: Any) -> None:
    model, samples = stories
    batch = subjects.as_batch(torch.tensor([samples[0]["input_ids"][:20]]))
    for name, (quantities, side) in cost.ENGINE.items():
        found = cost.engine(model, quantities, side)(batch).values
        assert set(quantities) <= set(found), name
        if "grad" in quantities:
            assert found["grad"].shape == (1, 1024)


def test_ordinary_training_forms_all_gradients(stories: Any) -> None:
    model, samples = stories
    subjects.ordinary(model, subjects.as_batch(torch.tensor([samples[0]["input_ids"][:20]])))
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad(set_to_none=True)


def test_activations_grow_with_the_batch(stories: Any) -> None:
    model, samples = stories
    few, many = (subjects.as_batch(torch.tensor([samples[0]["input_ids"][:length]])) for length in (10, 40))
    assert 0 < cost.saved_bytes(model, few) < cost.saved_bytes(model, many)


def test_full_rows_are_full() -> None:
    _, rows = subjects.full_rows("stories", 3, 64)
    assert [tuple(row["labels"].shape) for row in rows] == [(1, 64)] * 3


def test_the_loop_gives_whole_gradients(stories: Any) -> None:
    model, samples = stories
    batch = subjects.as_batch(torch.tensor([samples[i]["input_ids"][:20] for i in range(2)]))
    data = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in batch["input_ids"]]
    ours = gw.collect(model, data, want="grad", grad_dim=None, progress=False).grad
    assert ours is not None
    np.testing.assert_allclose(peers.loop(model, 0)(batch).numpy(), ours, atol=1e-6)


def test_projections_without_scale_are_scaled() -> None:
    gram = np.array([[4.0, 1.0], [1.0, 4.0]])
    z = subjects.dense(gram, 10**6, 0) * 10
    found = peers.inner_products([z], gram)
    assert found["scale"] == pytest.approx(100, rel=0.02)
    assert found["errors"][0].own > 90
    assert found["scaled_errors"][0].own < 0.01


def test_every_peer_says_how_it_is_run() -> None:
    assert all(peer.note for peer in peers.PEERS.values())


# ---- preconditioning ---------------------------------------------------------------------------------------


def test_rank_one_moments_are_divided_exactly(gradients: Any) -> None:
    rng = np.random.default_rng(0)
    moments = {
        name: torch.from_numpy(np.outer(*(rng.uniform(1, 2, size) ** 2 for size in p.shape)))
        for name, p in gradients.scope.parameters.items()
    }
    told = precondition.compared(precondition.grams(gradients, moments))
    assert told["gradwise"]["cosines_rms"] < 1e-6
    assert told["gradwise"]["norms_ratio"] == pytest.approx(1, abs=1e-6)
    assert told["none"]["cosines_rms"] > 1e-4


# ---- the store ---------------------------------------------------------------------------------------------


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "loss.npy").write_bytes(b"numbers")
        (tmp_path / name / "done").write_bytes(bytes([1, 1, 0, 0]))
        (tmp_path / name / ".gradwise.lock").touch()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"seconds": seconds, "complete": True}))
    return tmp_path / "a", tmp_path / "b"


def test_stores_that_differ_in_seconds_are_the_same(stores: tuple[Path, Path]) -> None:
    assert store.differences(*stores) == []
    assert store.done(stores[0]) == 0.5
    assert store.done(stores[0] / "nothing here") == 0.0


@pytest.mark.parametrize("name", ["loss.npy", "done", "manifest.json"])
def test_a_changed_file_is_told(stores: tuple[Path, Path], name: str) -> None:
    (stores[1] / name).write_bytes(b"{}")
    assert store.differences(*stores) == [name]


def test_a_missing_file_is_told(stores: tuple[Path, Path]) -> None:
    (stores[1] / "loss.npy").unlink()
    assert store.differences(*stores) == ["loss.npy"]


# ---- the script, the tables, the figure --------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The accuracy part on the smallest model, one seed."""
    folder = tmp_path_factory.mktemp("results")
    arguments = ["--parts", "accuracy", "--subjects", "stories", "--seeds", "1", "--out", str(folder)]
    command = [sys.executable, str(BENCHMARKS / "signals.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder


def test_accuracy_is_kept_told_and_drawn(out: Path) -> None:
    content = json.loads((out / "signals-accuracy.json").read_text())
    assert set(content["entries"]) == {"true/stories", "size/stories/0", "side/stories/0"}
    found = content["entries"]["size/stories/0"]["errors"]["gradwise"]["1024"]
    assert found[0] < 0.06
    text = results.page(out)
    assert f"{found[0]:.4f}" in text
    assert f"{accuracy.COUNTS['stories']} samples" in text
    picture = (out / "signals-accuracy.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000


def test_curves_have_a_point_for_each_seed(out: Path) -> None:
    content = json.loads((out / "signals-accuracy.json").read_text())
    curves = figure.curves(content, "stories")
    assert {way: {size: len(of) for size, of in by.items()} for way, by in curves.items()} == {
        way: dict.fromkeys(accuracy.SIZES, 1) for way in ("gradwise", "dense")
    }


def test_unknown_parts_are_refused() -> None:
    command = [sys.executable, str(BENCHMARKS / "signals.py"), "--parts", "cost,speed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "unknown speed" in done.stderr


def made(part: str, entries: dict[str, Any]) -> str:
    return "\n\n".join(tables.sections({"settings": {"part": part}, "entries": entries}))


def test_cost_table_takes_medians_of_ratios() -> None:
    seconds = {
        "ordinary": [[1.0, 1.0], [2.0, 1.0], [1.0, 1.0]],
        "loss+embedding+grad": [[0.8, 0.7], [1.4, 0.75], [0.6, 0.8]],
    }
    memory = {
        "memory/smollm2/ordinary": {"peak": 300 * 2**20, "activations": 200 * 2**20},
        "memory/smollm2/loss": {"peak": 150 * 2**20},
    }
    text = made("cost", {"time/smollm2": {"seconds": seconds, "batches": 1}, **memory})
    assert "| `loss+embedding+grad` | 0.700 | 0.750 | 0.90 |" in text
    assert "| `loss` | 150 | -50 |" in text


def test_peers_that_did_not_run_are_told() -> None:
    times = {"ordinary": [[1.0, 1.0]], "peer": [[2.0, 3.0]]}
    ran = {
        "peer": "loop", "note": "unprojected", "package": None, "seconds": times, "peak": 2**30,
        "numbers": 5000, "scale": 1.0, "errors": [[1e-9, 1e-9, 0.0]], "scaled_errors": [[1e-9, 1e-9, 0.0]],
    }  # fmt: skip
    lost = {"peer": "traker", "note": "", "package": None, "problem": "traker is not installed"}
    text = made("peers", {"peer/loop": ran, "peer/traker": lost})
    assert "| `loop` | 2.00 | 3.00 | 1,024 | 5,000 | exact | exact | unprojected |" in text
    assert "Did not run: `traker` (traker is not installed)." in text


def test_store_table_says_what_differs() -> None:
    entry = {
        "want": "loss", "problems": 2000, "max_length": 64, "blocks": 90, "killed_at": [0.34, 0.67],
        "seconds": 100.0, "seconds_killed": 110.0, "differ": [], "bar": "signals: 50%",
    }  # fmt: skip
    text = made("store", {"store/loss/2000": entry})
    assert "| `loss` | 2,000 | 64 | 90 | 34%, 67% | 100 | 110 | none |" in text
    assert "`signals: 50%`" in text


def test_precondition_table() -> None:
    way = {
        "cosines_rms": 0.01, "cosines_correlation": 0.99, "products_correlation": 0.98,
        "norms_correlation": 0.97, "norms_ratio": 1.01, "norms_spread": 0.02,
    }  # fmt: skip
    text = made(
        "precondition", {"precondition/stories": {"samples": 8, "steps": 3, "ways": {"gradwise": way}}}
    )
    assert "| rank one: means of d (gradwise) | 0.0100 | 0.9900 | 0.9800 | 0.9700 | 1.0100 | 0.0200 |" in text
