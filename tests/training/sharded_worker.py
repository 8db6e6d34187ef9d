"""Trains layer policies on a model that FSDP2 shards over ranks, or in one process."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

import gradwise as gw
from gradwise.training.sharded_checkpoint import load_state, whole_state

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "vocab_size": 63,  # an uneven split of the embeddings
    "num_hidden_layers": 4,
    "max_position_embeddings": 64,
}


def train(policy: dict[str, Any], steps: int, out: Path, resume: Path | None = None) -> None:
    """Make steps with clipping and a schedule; draws, losses and the whole state go to `out`.

    Without torch.distributed this is an ordinary loop. With it, each rank gets its share of every batch.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    if dist.is_initialized():
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    drawn = gw.Recipe.from_dict({"layers": policy}).layers.policy
    assert drawn is not None
    switch = gw.LayerSwitch(model, drawn, optimizer)
    step, draws, losses = 0, [], []
    if resume is not None:
        saved = torch.load(resume, weights_only=True)
        # Not strict: layers that were never drawn have no optimizer state yet.
        whole = StateDictOptions(full_state_dict=True, strict=False)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=saved["model"],
            optim_state_dict=saved["optimizer"],
            options=whole,
        )
        switch.load_state_dict(saved["switch"])
        step = saved["step"]
    while step < steps:
        probing, draw = switch.probing, switch.before_step()
        if draw is not None:
            draws.append(list(draw.active))
        generator = torch.Generator().manual_seed(step)
        batch = torch.randint(0, 63, (4, 8), generator=generator).chunk(ranks)[rank]
        total = torch.zeros(())
        for half in batch.chunk(2):  # accumulation
            loss = model(input_ids=half, labels=half).loss / 2
            loss.backward()
            total += loss.detach()
        switch.after_backward()
        losses.append(_mean(total))
        if not probing:
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 0.5)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 / (1 + step)
            optimizer.step()
            step += 1
        optimizer.zero_grad()
    _save(model, optimizer, switch, step, out, {"draws": draws, "losses": losses}, first=rank == 0)


def _save(
    model: Any, optimizer: Any, switch: Any, step: int, out: Path, seen: dict[str, Any], *, first: bool
) -> None:
    seen["scores"] = switch.scores.tolist()
    state = switch.state_dict()
    switch.restore()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    if first:
        torch.save({"model": weights, "optimizer": moments, "switch": state, "step": step}, f"{out}.pt")
        Path(f"{out}.json").write_text(json.dumps(seen))


def _mean(loss: torch.Tensor) -> float:
    """Over ranks."""
    if dist.is_initialized():
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    return float(loss)


def one_row(out: Path) -> None:
    """Train a model in which one parameter has a single row, so that the second rank holds nothing of it. The
    state is kept or offloaded, saved and loaded halfway."""
    results = []
    for offload in (None, "cpu"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 1))
        fully_shard(model)
        optimizer = gw.AdamW(model.parameters(), lr=1e-2, offload=offload)
        for step in range(4):
            torch.manual_seed(step)
            model(torch.randn(3, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                state = whole_state(optimizer)
                if dist.get_rank() == 0:
                    torch.save(state, f"{out}.optimizer.pt")
                dist.barrier()
                optimizer = gw.AdamW(model.parameters(), lr=1.0, offload=offload)
                load_state(optimizer, Path(f"{out}.optimizer.pt"))
                dist.barrier()
        results.append((model, whole_state(optimizer)))
    weights = [[p.full_tensor() for p in model.parameters()] for model, _ in results]  # type: ignore[attr-defined]
    if dist.get_rank() == 0:
        torch.save({"weights": weights, "states": [state["state"] for _, state in results]}, f"{out}.pt")


def main(jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        if job.get("one_row"):
            one_row(Path(job["out"]))
            continue
        resume = Path(job["resume"]) if job.get("resume") else None
        train(job["policy"], job["steps"], Path(job["out"]), resume)
