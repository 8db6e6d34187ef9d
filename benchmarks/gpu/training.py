"""Peak memory, step time and tokens per second of one way to train, on a GPU or, for a look, a CPU.

    python -m benchmarks.gpu.training 7b grass-offload 1024

Random weights of LLaMA-7B's shape in bfloat16, four rows of the given length, AdamW; the 7B model recomputes
each block's activations in the backward pass, as its published memory needs. Layers are drawn every ten
steps. All layers have optimizer state from the start, on the device or in host memory, as they have after
many draws; without it, `grass-offload` would have nothing to copy in. Prints one line of JSON.
"""

import json
import sys
import tempfile
import time
from importlib import import_module
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, LlamaConfig

import gradwise as gw
from benchmarks.gpu.run import PEERS
from gradwise.estimating import estimate
from gradwise.estimating.trace import checkpoint_activations
from gradwise.methods.baselines import RoundRobinLayers, UniformLayers
from gradwise.recipe import Adapter, Data, Model, Recipe, Train
from gradwise.training.adapter import with_adapter
from gradwise.training.sharding import local

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 128},
    "small": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "vocab_size": 32000},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000},
}
ROWS, PERIOD, WARM = 4, 10, 3
STEPS, DRAWS = 8, 4
"""Timed steps where all are alike, and timed draws where the lowest active block decides on the time."""
CHECKPOINTED = ("7b",)
"""Models with gradient checkpointing."""
SHARDS_IN_LOADING = Version(transformers.__version__) >= Version("5.19")
"""Whether the estimate knows a model that transformers shards; otherwise accelerate's stands for it."""


def policies() -> dict[str, Any]:
    """Layer policies by arm; two active layers, drawn every ten steps (GRASS is best with 10 to 50)."""
    return {
        "lisa": UniformLayers(active=2, period=PERIOD),
        "badam": RoundRobinLayers(active=1, period=PERIOD, state="drop"),
        "grass-keep": gw.Grass(active=2, period=PERIOD, probe=1),
        "grass-offload": gw.Grass(active=2, period=PERIOD, probe=1, state="offload"),
        "grass-stateless": gw.Grass(active=2, period=PERIOD, probe=1),
        "grass-drop": gw.Grass(active=2, period=PERIOD, probe=1, state="drop"),
    }


def measure(name: str, arm: str, length: int) -> dict[str, Any]:
    """Train a few steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = LlamaConfig(**MODELS[name], num_attention_heads=8 if name != "7b" else 32)
    torch.manual_seed(0)
    with device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if arm == "lora":
        model = with_adapter(model, "lora", {"r": 128, "lora_dropout": 0.0}).to(device)
    if name in CHECKPOINTED:
        checkpoint_activations(model)
    model.train()
    policy = policies().get(arm)
    optimizer = optimizer_of(arm, model)
    switch = None if policy is None else gw.LayerSwitch(model, policy, optimizer)
    if switch is not None and isinstance(optimizer, gw.AdamW):
        give_state(optimizer, switch)
    ids = torch.randint(0, config.vocab_size, (ROWS, length), device=device)
    mean = seconds_of_a_step(arm, model, switch, optimizer, ids)
    return {
        "model": name, "arm": arm, "length": length, "rows": ROWS, "step_seconds": round(mean, 4),
        "tokens_per_second": round(ROWS * length / mean, 1),
        "peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "reserved": torch.cuda.max_memory_reserved() if device.type == "cuda" else None,
        "checkpointing": name in CHECKPOINTED,
        **forecast(config, arm, policy, length, checkpointing=name in CHECKPOINTED),
    }  # fmt: skip


def optimizer_of(arm: str, model: Any) -> Any:
    """AdamW as the arm has it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if arm == "torchao-offload":
        optim: Any = import_module("torchao.optim")
        return optim.CPUOffloadOptimizer(
            trained, torch.optim.AdamW, offload_gradients=True, lr=1e-5, fused=True
        )
    if arm == "badam-package":
        badam: Any = import_module("badam")
        return badam.BlockOptimizer(
            base_optimizer=torch.optim.AdamW(trained, lr=1e-5),
            named_parameters_list=list(model.named_parameters()),
            switch_block_every=PERIOD,
            switch_mode="random",
            verbose=0,
        )
    if arm == "grass-stateless":  # what the others' state is compared with
        return torch.optim.SGD(trained, lr=1e-5)
    return gw.AdamW(trained, lr=1e-5, fused=True, offload="cpu" if arm == "adamw-offload" else None)


def give_state(optimizer: Any, switch: gw.LayerSwitch) -> None:
    """Give all layers what AdamW's fused kernel keeps for each parameter, where the policy keeps it.

    In host memory for `offload`: the first update moves it to its arena.
    """
    if switch.policy.state == "drop":
        return
    for parameter in (p for layer in switch.layers for p in layer):
        like = parameter.detach()
        if switch.policy.state == "offload":
            like = torch.empty_like(local(like), device="cpu")
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(like),
            "exp_avg_sq": torch.zeros_like(like),
        }


def seconds_of_a_step(arm: str, model: Any, switch: Any, optimizer: Any, ids: torch.Tensor) -> float:
    """Mean over a few steps without a draw, or over several draws, after the probe and a few steps."""
    while switch is not None and switch.probing:
        step(model, switch, optimizer, ids)
    for _ in range(WARM):
        step(model, switch, optimizer, ids)
    steps = STEPS if switch is None and arm != "badam-package" else DRAWS * PERIOD
    wait(ids.device)
    start = time.perf_counter()
    for _ in range(steps):
        step(model, switch, optimizer, ids)
    # Waited for once: the last copies of a step to the host overlap with the next forward pass.
    wait(ids.device)
    return (time.perf_counter() - start) / steps


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def step(model: Any, switch: Any, optimizer: Any, ids: torch.Tensor) -> None:
    if switch is not None:
        switch.before_step()
    model(input_ids=ids, labels=ids).loss.backward()
    if switch is not None:
        switch.after_backward()
    optimizer.step()
    optimizer.zero_grad()


def forecast(
    config: LlamaConfig,
    arm: str,
    policy: Any,
    length: int,
    *,
    checkpointing: bool = False,
    ranks: int | None = None,
) -> dict[str, Any]:
    """What `gradwise estimate` says of the peak, and of the time in forward passes per sample; of one of
    several ranks if they shard the model. It knows no offload without a layer policy, and no other packages.
    """
    unknown = {"estimated": None, "forward_passes": None}
    sections: dict[str, Any] = {} if policy is None else {"layers": policy}
    if arm == "lora":
        sections["adapter"] = Adapter(method="lora", options={"r": 128, "lora_dropout": 0.0})
    if arm in ("adamw-offload", "grass-stateless", *PEERS):
        return unknown
    with tempfile.TemporaryDirectory() as folder:
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        data: Any = Data(train="unread.jsonl", max_length=length)  # type: ignore[arg-type]
        arguments = {"per_device_train_batch_size": ROWS} | (
            {"gradient_checkpointing": True} if checkpointing else {}
        )
        if ranks is not None and not SHARDS_IN_LOADING:
            arguments |= {"fsdp": True, "fsdp_config": {"version": 2}}
        train = Train(batch_size=ROWS * (ranks or 1), arguments=arguments)
        try:
            model = Model(name=folder, dtype="bfloat16")
            recipe = Recipe(model=model, data=data, train=train, **sections)
            as_loaded = ranks is not None and SHARDS_IN_LOADING
            expected = estimate(recipe, ranks=ranks, sharded_as_loaded=as_loaded)
        except Exception:  # of a torch that nobody has tried; the measurement must not be lost with it
            return unknown
    return {"estimated": expected.peak, "forward_passes": round(expected.training, 4)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
