"""What a CPU cannot show: the same projection on a CUDA device, half precision there, and peak memory."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import gradwise as gw
from benchmarks.common.memory import saved_for_backward
from gradwise.data import Collator

pytestmark = pytest.mark.gpu

QUANTITIES = ("loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding")


def test_cpu_and_gpu_agree(story_model, speeches) -> None:
    model = story_model()
    here = gw.collect(model, speeches, want=QUANTITIES, parameters="all", progress=False)
    there = gw.collect(
        copy.deepcopy(model).cuda(), speeches, want=QUANTITIES, parameters="all", progress=False
    )
    for name in QUANTITIES:
        mine, theirs = getattr(here, name), getattr(there, name)
        assert np.linalg.norm(mine - theirs) <= 1e-3 * np.linalg.norm(mine), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(story_model, speeches, dtype: torch.dtype) -> None:
    model = story_model().cuda()
    full = gw.collect(model, speeches, want=QUANTITIES, progress=False)
    half = gw.collect(model.to(dtype), speeches, want=QUANTITIES, progress=False)
    assert half.ok is not None and half.ok.all()
    for name in QUANTITIES:
        mine, theirs = getattr(full, name), getattr(half, name)
        assert np.linalg.norm(mine - theirs) <= 0.1 * np.linalg.norm(mine), name


@pytest.mark.parametrize("want", [("loss", "embedding", "grad"), ("loss", "embedding", "grad", "grad_norm")])
def test_extra_memory_is_little_more_than_activations(want: tuple[str, ...]) -> None:
    """A batch with more than a GiB of activations, beside which weights and gradients are small."""
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "vocab_size": 4096}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8))
    model.cuda()
    ids = torch.randint(3, 4096, (16, 512))
    rows = [{"input_ids": row, "labels": row} for row in ids.tolist()]
    with saved_for_backward(model) as saved:
        loss = model(**{name: value.cuda() for name, value in Collator(0)(rows).items()}).loss
    del loss

    def score() -> None:
        gw.collect(model, rows, want=want, batch_tokens=ids.numel(), progress=False)

    score()  # warm: kernels and their workspaces
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    score()
    assert saved[0] > 2**30
    assert torch.cuda.max_memory_allocated() - before <= saved[0] + 64 * 2**20
