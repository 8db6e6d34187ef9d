"""The signal benchmarks measure what their pages say; no times."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from benchmarks.common.folders import DATA
from benchmarks.signals import accuracy, cost, implementations, peers, precondition, store, subjects
from benchmarks.signals.subjects import root_mean_square
from gradwise.signals.sums import Projector

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc"),
    pytest.mark.skipif(not DATA.exists(), reason="the real data are not beside the repository"),
]


@pytest.fixture(scope="module")
def stories() -> Any:
    return subjects.subject("stories", 6)


@pytest.fixture(scope="module")
def gradients(stories: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return accuracy.Gradients(stories.model, stories.samples, tmp_path_factory.mktemp("gradients"))


def batch_of(stories: Any, length: int, rows: int = 1) -> subjects.Batch:
    return subjects.as_batch(
        torch.tensor([sample["input_ids"][:length] for sample in stories.samples[:rows]])
    )


# ---- accuracy ----------------------------------------------------------------------------------------------


def test_no_projection_has_no_error(gradients: Any) -> None:
    whole = np.concatenate([stored.reshape(gradients.count, -1) for _, stored in gradients], axis=1)
    assert max(map(abs, subjects.errors(whole, gradients.gram()))) < 1e-6


def test_errors_of_known_projections() -> None:
    z = np.array([[2.0, 0.0], [0.0, 1.0]])
    pairs, own, bias = subjects.errors(z, np.array([[1.0, 0.5], [0.5, 1.0]]))
    assert (pairs, bias) == (0.5, -0.5)
    assert own == pytest.approx(np.sqrt(9 / 2))
    gram = np.array([[2.0, 1.0], [1.0, 3.0]])
    assert max(map(abs, subjects.errors(subjects.dense(gram, 10**6, 0), gram))) < 0.01


def test_stored_gradients_are_projected_as_in_the_engine(stories: Any, gradients: Any) -> None:
    signals = gw.collect(*stories, want="grad", grad_dim=256, progress=False)
    ours = gradients.projected({"it": Projector(256, 0)})["it"]
    assert signals.grad is not None
    np.testing.assert_allclose(ours, signals.grad, atol=1e-4 * np.abs(signals.grad).max())


@pytest.mark.exhaustive
def test_dense_errors_are_those_of_an_explicit_matrix(gradients: Any) -> None:
    gram, seeds = gradients.gram(), range(12)
    drawn = [subjects.errors(subjects.dense(gram, 256, seed), gram)[0] for seed in seeds]
    explicit = [subjects.errors(gradients.multiplied(256, seed), gram)[0] for seed in seeds]
    assert root_mean_square(drawn) == pytest.approx(root_mean_square(explicit), rel=0.25)
    assert root_mean_square(drawn) == pytest.approx(256**-0.5, rel=0.25)


def test_the_script_measures_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "COUNTS", {"stories": 12})
    path = tmp_path / "signals-accuracy.json"
    options = ["--subjects", "stories", "--seeds", "1", "--out", str(path)]
    monkeypatch.setattr(sys, "argv", ["accuracy", *options])
    accuracy.main()
    content = json.loads(path.read_text())
    assert set(content["entries"]) == {"true/stories", "size/stories/0", "side/stories/0"}
    errors = content["entries"]["size/stories/0"]["errors"]["gradwise"]
    assert errors["1024"][0] < 0.06 and errors["8192"][1] < errors["256"][1]
    assert f"{errors['1024'][0]:.4f}" in "\n".join(accuracy.page(content).sections)
    curves = accuracy.curves(content, "stories")
    assert {name: {size: len(of) for size, of in by.items()} for name, by in curves.items()} == {
        name: dict.fromkeys(accuracy.SIZES, 1) for name in ("gradwise", "dense")
    }
    accuracy.draw(content, tmp_path)
    picture = (tmp_path / "signals-accuracy.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 100_000


# ---- cost and other implementations ------------------------------------------------------------------------


def test_every_arm_measures_what_its_name_says(stories: Any) -> None:
    batch = batch_of(stories, 20)
    for name, (quantities, side) in cost.ENGINE.items():
        values = cost.engine(stories.model, quantities, side)(batch).values
        assert set(quantities) <= set(values), name
        if "grad" in quantities:
            assert values["grad"].shape == (1, 1024)


def test_a_training_step_computes_all_gradients_and_keeps_activations(stories: Any) -> None:
    subjects.train_step(stories.model, batch_of(stories, 20))
    assert all(p.grad is not None for p in stories.model.parameters())
    stories.model.zero_grad(set_to_none=True)
    few, many = (cost.activation_bytes(stories.model, batch_of(stories, length)) for length in (10, 40))
    assert 0 < few < many


def test_full_rows_are_full() -> None:
    _, rows = subjects.full_rows("stories", 3, 64)
    assert [tuple(row["labels"].shape) for row in rows] == [(1, 64)] * 3


def test_the_loop_gives_whole_gradients(stories: Any) -> None:
    batch = batch_of(stories, 20, rows=2)
    data = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in batch["input_ids"]]
    ours = gw.collect(stories.model, data, want="grad", grad_dim=None, progress=False).grad
    assert ours is not None
    np.testing.assert_allclose(implementations.loop(stories.model, 0)(batch).numpy(), ours, atol=1e-6)


def test_projections_without_scale_are_scaled() -> None:
    gram = np.array([[4.0, 1.0], [1.0, 4.0]])
    z = subjects.dense(gram, 10**6, 0) * 10
    entry = peers.inner_products([z], gram)
    assert entry["scale"] == pytest.approx(100, rel=0.02)
    assert entry["errors"][0].diagonal > 90
    assert entry["scaled_errors"][0].diagonal < 0.01


def test_implementations_that_did_not_run_are_named() -> None:
    times = {"ordinary": [[1.0, 1.0]], "peer": [[2.0, 3.0]]}
    exact = [[1e-9, 1e-9, 0.0]]
    ran = {
        "package": None, "seconds": times, "peak": 2**30, "numbers": 5000, "scale": 1.0, "errors": exact,
        "scaled_errors": exact,
    }  # fmt: skip
    lost = {"package": None, "problem": "traker is not installed"}
    page = peers.page({"entries": {"peer/loop": ran, "peer/traker": lost}})
    text = "\n".join(page.sections)
    assert "| `loop` | 2.00 | 3.00 | 1,024 | 5,000 | exact | exact | unprojected |" in text
    assert "Did not run: `traker` (traker is not installed)." in text


# ---- preconditioning and the store -------------------------------------------------------------------------


def test_rank_one_moments_are_divided_exactly(gradients: Any) -> None:
    rng = np.random.default_rng(0)
    moments = {
        name: torch.from_numpy(np.outer(*(rng.uniform(1, 2, size) ** 2 for size in p.shape)))
        for name, p in gradients.scope.parameters.items()
    }
    forms = precondition.compared(precondition.grams(gradients, moments))
    assert forms["gradwise"]["cosines_rms"] < 1e-6
    assert forms["gradwise"]["norms_ratio"] == pytest.approx(1, abs=1e-6)
    assert forms["none"]["cosines_rms"] > 1e-4


def test_differences_of_stores_are_named(tmp_path: Path) -> None:
    stores = [tmp_path / "a", tmp_path / "b"]
    for seconds, folder in enumerate(stores):
        folder.mkdir()
        (folder / "loss.npy").write_bytes(b"numbers")
        (folder / "done").write_bytes(bytes([1, 1, 0, 0]))
        (folder / ".gradwise.lock").touch()
        (folder / "manifest.json").write_text(json.dumps({"seconds": seconds, "complete": True}))
    assert store.differences(*stores) == []
    assert (store.done(stores[0]), store.done(stores[0] / "nothing here")) == (0.5, 0.0)
    for name in ("loss.npy", "done", "manifest.json"):
        before = (stores[1] / name).read_bytes()
        (stores[1] / name).write_bytes(b"{}")
        assert store.differences(*stores) == [name]
        (stores[1] / name).write_bytes(before)
    (stores[1] / "loss.npy").unlink()
    assert store.differences(*stores) == ["loss.npy"]
