"""Runs with decisions, on a model that FSDP2 shards over ranks; `test_sharded_decisions` compares them with
those of one process.

With GPUs: torchrun --nproc-per-node gpu sharded_run_worker.py JOBS.json
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerState, TrainingArguments

import gradwise as gw
from gradwise.data import Collator
from gradwise.signals.shards import units


class ByAccelerate(gw.Trainer):
    """A Trainer whose model accelerate shards by FSDP2; by itself it does so only on accelerators."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT"
        )
        if self.args.bf16:
            plugin.set_mixed_precision("bf16")
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        # As accelerate does; otherwise the next AcceleratorState() takes the type back.
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True


ON_GPU: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}}
"""The Trainer's own setting, which shards on accelerators."""


class StopAfter(TrainerCallback):
    """Asks for a stop, as Ctrl-C does."""

    def __init__(self, trainer: gw.Trainer, step: int | None) -> None:
        self.trainer, self.step = trainer, step

    def on_step_begin(self, _: object, state: TrainerState, *__: object, **___: object) -> None:
        # Within the step, so that it is its last one.
        if self.step is not None and state.global_step + 1 == self.step:
            self.trainer.session.stop_requested = True


def run(job: dict[str, Any]) -> None:
    """Train as a job says; weights, the plan and what was recorded go to its folder."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    arguments = TrainingArguments(
        job["out"],
        learning_rate=1e-3,
        lr_scheduler_type="warmup_stable_decay" if "anneal" in job["recipe"] else "constant",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not job.get("gpu"),
        dataloader_pin_memory=False,
        **(ON_GPU if job.get("gpu") and job["sharded"] == "by accelerate" else {}),
        **{
            "per_device_train_batch_size": 4 // ranks,
            "max_steps": 8,
            "save_strategy": "no",
            **job.get("arguments", {}),
        },
    )
    options: dict[str, Any] = {}
    if job["sharded"] == "as it is loaded":
        from transformers.distributed.configuration_utils import DistributedConfig

        options["distributed_config"] = DistributedConfig(fsdp_size=ranks)
    # After the arguments, which connect the ranks.
    model = AutoModelForCausalLM.from_pretrained(job["model"], **job.get("options", {}), **options)
    if job.get("adapter"):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    data: Any = load_from_disk(job["data"])
    train = data.select(range(24))
    if job.get("streamed"):
        train = train.select_columns(["input_ids", "labels"]).to_iterable_dataset()
    kind = ByAccelerate if job["sharded"] == "by accelerate" and not job.get("gpu") else gw.Trainer
    trainer = kind(
        model,
        arguments,
        Collator(0),
        train,
        eval_dataset=data.select(range(24, 36)),
        recipe=gw.Recipe.from_dict(job["recipe"]),
    )
    trainer.session.tell = lambda _: None
    trainer.add_callback(StopAfter(trainer, job.get("stopped_after")))
    trainer.train(resume_from_checkpoint=job.get("resume", False))
    assert bool(units(trainer.model)) == (job["sharded"] != "whole")
    whole = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in trainer.model.state_dict().items()
    }
    if not dist.is_initialized() or dist.get_rank() == 0:
        out = Path(job["out"])
        torch.save(whole, out / "weights.pt")
        if (plan := trainer.session.plan) is not None:
            np.save(out / "served.npy", plan.indices)


def main(jobs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    for job in jobs:
        run(job)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
