"""The layer switch of a run: put around the Trainer's optimizer, and its first measurement of all layers."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradwise.host import HostTrainer
from gradwise.methods.layer_policy import LayerPolicy
from gradwise.signals.model_state import unwrapped
from gradwise.signals.shards import reshard
from gradwise.training.layers import LayerSwitch
from gradwise.training.sharding import is_sharded


def layer_switch(
    model: nn.Module,
    policy: LayerPolicy,
    optimizer: torch.optim.Optimizer,
    trainer: HostTrainer,
    *,
    seed: int,
) -> LayerSwitch:
    """A switch for the trainer's model and optimizer; a collective call, after which all ranks have the same
    weights."""
    reshard(model)  # evaluation leaves whole parameters, and the optimizer has the sharded ones
    ranks = trainer.args.world_size
    switch = LayerSwitch(
        model,
        policy,
        unwrapped(optimizer),
        seed=seed,
        # FSDP2 averages the gradients of what it shards itself.
        average_ranks=ranks > 1 and not is_sharded(p for p in model.parameters() if p.requires_grad),
        steps=trainer.state.max_steps,
    )
    if ranks > 1:
        # What DistributedDataParallel would have done on wrapping.
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if not is_sharded([tensor]):
                    dist.broadcast(tensor, src=0)
    return switch


def leave_unwrapped(accelerator: Any) -> None:
    """Let accelerate prepare models (precision, compilation) without the wrapper for data parallelism."""
    accelerator.prepare_model = partial(_prepared_unwrapped, accelerator.prepare_model)


def _prepared_unwrapped(
    prepare: Callable[..., Any], model: object, device_placement: Any = None, **_: object
) -> Any:
    return prepare(model, device_placement=device_placement, evaluation_mode=True)


def run_probe(
    switch: LayerSwitch,
    trainer: HostTrainer,
    ahead: Callable[[int], list[Any]],
    loss_scale: Callable[[], float | Tensor],
) -> tuple[int, float]:
    """Measure all layers on the first steps' samples; nothing else of the run changes.

    Args:
        switch: that is probing.
        trainer: of the run.
        ahead: gives the micro-batches of a step, counted from the one about to begin.
        loss_scale: what the loss is multiplied by at present.

    Returns:
        Steps measured, and the seconds it took.
    """
    start, done = time.perf_counter(), 0
    cuda = list(range(torch.cuda.device_count())) if trainer.args.device.type == "cuda" else []
    # Dropout in the probe must not move the stream that the first step will draw from.
    with torch.random.fork_rng(cuda):
        while switch.probing:
            left = switch.probes_left
            switch.before_step()
            trainer.probe(ahead(done))
            switch.after_backward(loss_scale())
            if switch.probes_left == left:  # the scaled gradient overflowed
                scaler = trainer.accelerator.scaler
                # The scaler lowers its scale only from what an optimizer's step has found, and a probe makes
                # none.
                scaler.update(scaler.get_scale() / 2)
            else:
                done += 1
    return done, time.perf_counter() - start
