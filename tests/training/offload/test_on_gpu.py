"""Offloaded state on a CUDA device: real streams, pinned memory, and memory that it saves."""

from typing import Any

import pytest
import torch

import gradwise as gw
from gradwise.training.offload.device import CudaDevice
from tests.conftest import same_weights

pytestmark = pytest.mark.gpu
BATCH = torch.arange(24).view(2, 12)


def train(model: Any, *, offload: Any, steps: int = 20, **settings: Any) -> Any:
    model = model.to("cuda")
    optimizer = gw.AdamW(model.parameters(), lr=1e-2, offload=offload, **settings)
    for _ in range(steps):
        ids = BATCH.to("cuda")
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.state_dict()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("unit", [6000, 64 << 20])
def test_offload_is_keep(
    tiny_llama, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, settings: Any, unit: int
) -> None:
    """With small units as well: several of them are under way at once."""
    monkeypatch.setattr("gradwise.training.offload.arena.UNIT_BYTES", unit)
    models = [tiny_llama().to(dtype) for _ in range(2)]
    torch.use_deterministic_algorithms(True)
    try:
        kept, offloaded = (
            train(model, offload=offload, **settings)
            for model, offload in zip(models, (None, "cpu"), strict=True)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert same_weights(kept, offloaded)


def test_host_memory_is_pinned() -> None:
    memory = CudaDevice(torch.device("cuda", 0)).host(10_000_000)
    assert len(memory) == 10_000_000
    assert torch.frombuffer(memory, dtype=torch.uint8).is_pinned()


def test_state_is_not_on_the_device(tiny_llama) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 1024}
    held = []
    for offload in (None, "cpu"):
        before = torch.cuda.memory_allocated()
        model = train(tiny_llama(8, **sizes), offload=offload, steps=3)
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated() - before)
        weights = sum(p.nbytes for p in model.parameters())
        del model
    assert held[0] - held[1] > 1.5 * weights
