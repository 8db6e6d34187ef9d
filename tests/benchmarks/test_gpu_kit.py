"""The GPU kit knows all GPU tests, says in one sentence that there is no GPU, and its measurements run."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import run as kit
from benchmarks.gpu.training import measure, policies
from tests.conftest import ROOT


def test_every_gpu_test_and_arm_is_a_piece() -> None:
    found = kit.pieces()
    assert {"tests-training-test_gpu", "tests-training-offload-test_on_gpu"} <= found.keys()
    assert {"training-7b-1024-full", "training-7b-2048-grass-offload"} <= found.keys()
    assert set(policies()) <= set(kit.ARMS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be used")
def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "There is no CUDA device here, so nothing was run.\n"


def test_a_piece_keeps_what_it_measured_or_why_not() -> None:
    good = kit.run("tests-x", [sys.executable, "-c", "print('text'); print('{\"peak\": 3}')"])
    assert good["outcome"] == "done" and good["measured"] == {"peak": 3}
    bad = kit.run("tests-y", [sys.executable, "-c", "raise SystemExit('no memory')"])
    assert bad["outcome"] == "failed" and "no memory" in bad["output"] and bad["machine"]["torch"]
    json.dumps([good, bad])


@pytest.mark.parametrize("arm", ["grass-offload", "adamw-offload"])
def test_an_arm_runs(arm: str) -> None:
    found = measure("tiny", arm, 16)
    assert found["step_seconds"] > 0 and (found["estimated"] is None) is (arm == "adamw-offload")
