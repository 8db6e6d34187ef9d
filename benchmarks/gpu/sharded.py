"""Peak memory, step time and tokens per second of a model that FSDP2 shards, on all GPUs of this machine.

    torchrun --standalone --nproc-per-node gpu -m benchmarks.gpu.sharded 7b grass-offload 1024

As `benchmarks.gpu.training`, with four rows for each rank; `collect` scores rows with gradients for GRACE
instead. On one GPU nothing is shared, but FSDP2 and NCCL run as they do on several. The first rank prints
one line of JSON, with what the estimate says of it.
"""

import json
import os
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, LlamaConfig

import gradwise as gw
from benchmarks.gpu.training import MODELS, ROWS, forecast, give_state, policies, seconds_of_a_step, wait

SCORED = 16
"""Rows that each rank scores."""


def measure(name: str, arm: str, length: int) -> dict[str, Any]:
    """Train a few steps, or score some rows; a collective call where there are several ranks."""
    config = LlamaConfig(**MODELS[name], num_attention_heads=8 if name != "7b" else 32)
    policy, ranks = policies().get(arm), int(os.environ.get("WORLD_SIZE", "1"))
    # Before the ranks meet, since the estimate pretends to be among others.
    expected = {} if arm == "collect" else forecast(config, arm, policy, length, ranks=ranks)
    device = _met()
    try:
        torch.manual_seed(0)
        with device:
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        mesh = init_device_mesh(device.type, (ranks,))
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # the model was whole on each rank
        ids = torch.randint(0, config.vocab_size, (ROWS, length), device=device)
        seconds, rows = _scored(model, ids, ranks) if arm == "collect" else _trained(model, arm, policy, ids)
    finally:
        dist.destroy_process_group()
    return {
        "model": name, "arm": arm, "length": length, "ranks": ranks, "rows": rows,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(ranks * rows * length / seconds, 1),
        "peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "reserved": torch.cuda.max_memory_reserved() if device.type == "cuda" else None,
        **expected,
    }  # fmt: skip


def _met() -> torch.device:
    """Where this rank computes, once the ranks are connected."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _trained(model: Any, arm: str, policy: Any, ids: torch.Tensor) -> tuple[float, int]:
    """Seconds of a step, and its rows."""
    model.train()
    optimizer = gw.AdamW(model.parameters(), lr=1e-5, fused=True)
    switch = None if policy is None else gw.LayerSwitch(model, policy, optimizer)
    if switch is not None:
        give_state(optimizer, switch)
    assert (arm == "full") is (switch is None)
    return seconds_of_a_step(arm, model, switch, optimizer, ids), len(ids)


def _scored(model: Any, ids: torch.Tensor, ranks: int) -> tuple[float, int]:
    """Seconds of scoring, and the rows that each rank scored; a first call is not counted."""
    rows = ids.repeat(-(-SCORED // len(ids)), 1)[:SCORED].tolist() * ranks
    data = [{"input_ids": row, "labels": row} for row in rows]
    start = 0.0
    for _ in range(2):
        start = time.perf_counter()
        gw.collect(model, data, want=("loss", "embedding", "grad"), progress=False)
        wait(ids.device)
    return time.perf_counter() - start, SCORED


def main() -> None:
    entry = measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(entry))


if __name__ == "__main__":
    main()
