"""What a CPU cannot show: the same projection on a CUDA device, half precision there, and peak memory."""

import copy

import numpy as np
import pytest
import torch

import gradwise as gw

pytestmark = pytest.mark.gpu

QUANTITIES = ("loss", "embedding", "grad_norm", "grad", "head_norm")


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


def test_extra_memory_is_less_than_training_needs(story_model, speeches) -> None:
    model = story_model().cuda()
    batch = [speeches[i] for i in range(32)]
    gw.collect(model, batch, progress=False)  # warm: kernels and their workspaces
    peaks = []
    for measure in (lambda: _train(model, batch), lambda: gw.collect(model, batch, progress=False)):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        measure()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= peaks[0] + 64 * 2**20


def _train(model, batch) -> None:
    from gradwise.data import Collator

    inputs = {name: value.cuda() for name, value in Collator(0)(batch).items()}
    model(**inputs).loss.backward()
    model.zero_grad(set_to_none=True)
