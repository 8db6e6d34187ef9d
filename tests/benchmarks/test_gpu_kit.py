"""The GPU kit knows all GPU tests, says in one sentence that there is no GPU, and its measurements run."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import run as kit
from benchmarks.gpu.run import PEERS
from benchmarks.gpu.sharded import measure as measure_sharded
from benchmarks.gpu.training import DRAWS, PERIOD, WARM, measure, policies
from gradwise.training.offload.device import CpuDevice
from tests.conftest import ROOT


def test_every_gpu_test_and_arm_is_a_piece() -> None:
    found = kit.pieces()
    marked = re.compile(r"^(pytestmark = |@)pytest\.mark\.gpu", re.MULTILINE)
    files = [
        path for path in (ROOT / "tests").rglob("*.py") if marked.search(path.read_text(encoding="utf-8"))
    ]
    assert len(files) > 4
    run = {command[-1] for command in found.values()}
    assert {str(path.relative_to(ROOT)) for path in files} <= run
    arms = (
        "full", "lora", "lisa", "badam", "badam-package", "torchao-offload", "grass-keep", "grass-offload",
    )  # fmt: skip
    for length in (512, 1024, 2048):
        assert {f"training-7b-{length}-{arm}" for arm in arms} <= found.keys()
    assert set(policies()) | set(PEERS) <= set(kit.ARMS)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be used")
def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "There is no CUDA device here, so nothing was run.\n"


def test_why_transformers_cannot_be_imported_is_said_in_one_sentence(tmp_path: Path) -> None:
    """transformers 5.17 refuses huggingface_hub 2 as it is imported."""
    package = tmp_path / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('hub<2 is required,\\nbut found hub==2.4.')")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.run"],
        cwd=ROOT, env=variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    reason = "hub<2 is required, but found hub==2.4 (5.17 needs huggingface_hub below 2, and httpx)"
    assert done.stdout == f"transformers cannot be imported: {reason}.\n"


def test_a_piece_keeps_what_it_measured_or_why_not() -> None:
    good = kit.run("tests-x", [sys.executable, "-c", "print('text'); print('{\"peak\": 3}')"])
    assert good["outcome"] == "done" and good["measured"] == {"peak": 3}
    bad = kit.run("tests-y", [sys.executable, "-c", "raise SystemExit('no memory')"])
    assert bad["outcome"] == "failed" and "no memory" in bad["output"] and bad["machine"]["torch"]
    assert {"accelerate", "peft", "badam", "torchao", "revision"} <= bad["machine"].keys()
    json.dumps([good, bad])


def test_a_warning_behind_a_measurement_does_not_lose_it() -> None:
    late = "print('{\"peak\": 3}'); print('{no JSON'); print('Exception ignored in: x')"
    assert kit.run("training-x", [sys.executable, "-c", late])["measured"] == {"peak": 3}
    none = kit.run("training-y", [sys.executable, "-c", "print('nothing measured')"])
    assert none["measured"] is None and none["output"] == "nothing measured\n"


def test_collected_results_become_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [{"piece": name, "outcome": "done", "measured": {"peak": 3}} for name in ("a", "b")]
    lines = tmp_path / "gpu.jsonl"
    lines.write_text("".join(json.dumps(result) + "\n" for result in results))
    monkeypatch.setattr(kit, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["run", "--take", str(lines)])
    kit.main()
    assert [json.loads((tmp_path / "results" / f"{name}.json").read_text()) for name in "ab"] == results


def test_pieces_are_chosen_by_pattern(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    chosen = ["training-7b-1024-grass-*", "training-small-1024-full"]
    monkeypatch.setattr(sys, "argv", ["run", "--list", "--only", *chosen])
    kit.main()
    listed = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert listed[-1] == "training-small-1024-full" and len(listed) == 5
    assert all(name.startswith("training-7b-1024-grass-") for name in listed[:-1])


def test_a_piece_that_takes_too_long_ends_with_all_that_it_started() -> None:
    child = "import time; print('child', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    slow = kit.run("tests-z", [sys.executable, "-c", parent], limit=2)
    assert slow["outcome"] == "took too long" and slow["seconds"] < 30 and slow["output"] == "child\n"


@pytest.mark.parametrize("arm", ["grass-keep", "grass-offload", "grass-stateless", "adamw-offload"])
def test_an_arm_runs(arm: str) -> None:
    found = measure("tiny", arm, 16)
    unknown = arm in ("adamw-offload", "grass-stateless")
    assert found["step_seconds"] > 0 and (found["estimated"] is None) is unknown
    assert (found["forward_passes"] is None) is unknown


def test_offloaded_layers_have_state_to_copy_in_from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that were never drawn have none in a run, and the copy in would be skipped."""
    copies: list[int] = []
    monkeypatch.setattr(
        CpuDevice,
        "copy_in",
        lambda self, *arguments, copy_in=CpuDevice.copy_in: copies.append(1) or copy_in(self, *arguments),
    )
    measure("tiny", "grass-offload", 16)
    # Two layers of one unit each.
    assert len(copies) == 2 * (WARM + DRAWS * PERIOD)


@pytest.mark.parametrize("arm", kit.SHARDED_ARMS)
def test_an_arm_on_a_sharded_model_runs(arm: str) -> None:
    assert {f"sharded-{model}-1024-{arm}" for model in kit.SHAPES} <= kit.pieces().keys()
    found = measure_sharded("tiny", arm, 16)
    assert found["tokens_per_second"] > 0 and found["ranks"] == 1
    assert ("estimated" in found) is (arm != "collect")
    assert arm == "collect" or (found["estimated"] > 0 and found["forward_passes"] > 0)
    assert not torch.distributed.is_initialized()


class OtherOffload(torch.optim.AdamW):
    """Takes what torchao's takes."""

    def __init__(self, params: Any, kind: type, *, offload_gradients: bool = False, **settings: Any) -> None:
        assert kind is torch.optim.AdamW and offload_gradients
        super().__init__(params, **settings)


class OtherBlocks(torch.optim.SGD):
    """Takes what BAdam's takes."""

    def __init__(
        self, base_optimizer: Any, named_parameters_list: list[Any], switch_block_every: int, **_: Any
    ) -> None:
        assert len(named_parameters_list) == len(base_optimizer.param_groups[0]["params"])
        super().__init__([p for _, p in named_parameters_list], lr=1e-3)


@pytest.mark.parametrize("arm", list(PEERS))
def test_arms_of_other_packages_run_with_stand_ins(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, parts in (
        ("torchao.optim", {"CPUOffloadOptimizer": OtherOffload}), ("badam", {"BlockOptimizer": OtherBlocks}),
    ):  # fmt: skip
        module: Any = types.ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    found = measure("tiny", arm, 16)
    assert found["tokens_per_second"] > 0 and found["estimated"] is None


def test_the_list_says_what_is_done_and_what_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kit, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run", "--list"])
    monkeypatch.setattr(
        kit.importlib.util, "find_spec", lambda name: None if name in PEERS.values() else name
    )
    (tmp_path / "training-7b-512-full.json").write_text('{"outcome": "failed"}')
    kit.main()
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(kit.pieces()) and "done  training-7b-512-full" in shown
    assert "left  training-7b-512-torchao-offload (needs torchao)" in shown
    monkeypatch.setattr(sys, "argv", ["run", "--list", "--again"])
    kit.main()
    assert "left  training-7b-512-full" in capsys.readouterr().out.splitlines()
