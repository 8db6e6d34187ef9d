"""Peak memory of a pass beside that of an ordinary forward and backward pass over the same batch."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gradwise.data import Collator
from gradwise.signals import collect
from tests.signals.processes import ended, start

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]


def peak(step: Callable[[], Any], folder: Path) -> int:
    """Bytes that resident memory grows by at most, in a process of its own; after a first step."""

    def measure() -> None:
        step()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
        before = _status("VmRSS")
        step()
        (folder / "peak").write_text(str(_status("VmHWM") - before))

    assert ended(start(measure)) == 0
    return int((folder / "peak").read_text())


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.parametrize("parameters", ["blocks", "all"])
def test_at_most_that_of_training_and_64_mebibytes(tmp_path: Path, parameters: str):
    """1,024 tokens of a model of 4 M parameters: 70 MiB of activations, as much again of logits."""
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4000, num_attention_heads=4, **sizes))
    rng = np.random.default_rng(0)
    rows = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in rng.integers(3, 4000, (8, 128))]

    def train() -> None:
        model(**Collator(0)(rows)).loss.backward()
        model.zero_grad(set_to_none=True)

    def measure() -> None:
        collect(model, rows, parameters=parameters, progress=False)

    ordinary, ours = peak(train, tmp_path), peak(measure, tmp_path)
    print(f"training {ordinary / 2**20:.0f} MiB, signals {ours / 2**20:.0f} MiB")
    assert ordinary > 50 * 2**20
    assert ours <= ordinary + 64 * 2**20
