"""Peak memory, step time and tokens per second of one way to train, on a GPU or, for a look, a CPU.

    python -m benchmarks.gpu.training 7b grass-offload 1024

Random weights of LLaMA-7B's shape in bfloat16, four rows of the given length, AdamW. Prints one line of JSON.
"""

import json
import sys
import tempfile
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import gradwise as gw
from gradwise.errors import GradwiseError
from gradwise.estimating import estimate
from gradwise.methods.baselines import RoundRobinLayers, UniformLayers
from gradwise.recipe import Adapter, Data, Model, Recipe, Train
from gradwise.training.adapter import with_adapter

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 128},
    "small": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "vocab_size": 32000},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000},
}
ROWS, PERIOD, WARM, TIMED = 4, 1, 3, 8


def policies() -> dict[str, Any]:
    """Layer policies by arm; two active layers, drawn at every step."""
    return {
        "lisa": UniformLayers(active=2, period=PERIOD),
        "badam": RoundRobinLayers(active=1, period=PERIOD, state="drop"),
        "grass-keep": gw.Grass(active=2, period=PERIOD, probe=1),
        "grass-offload": gw.Grass(active=2, period=PERIOD, probe=1, state="offload"),
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
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    offload: Any = "cpu" if arm == "adamw-offload" else None
    optimizer = gw.AdamW(trained, lr=1e-5, fused=True, offload=offload)
    policy = policies().get(arm)
    switch = None if policy is None else gw.LayerSwitch(model, policy, optimizer)
    ids = torch.randint(0, config.vocab_size, (ROWS, length), device=device)
    seconds: list[float] = []
    while len(seconds) < WARM + TIMED:
        start = time.perf_counter()
        probing = switch is not None and switch.probing
        _step(model, switch, optimizer, ids)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if not probing:
            seconds.append(time.perf_counter() - start)
    middle = sorted(seconds[WARM:])[TIMED // 2]
    return {
        "model": name, "arm": arm, "length": length, "rows": ROWS, "step_seconds": round(middle, 4),
        "tokens_per_second": round(ROWS * length / middle, 1),
        "peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "reserved": torch.cuda.max_memory_reserved() if device.type == "cuda" else None,
        "estimated": _estimated(config, arm, policy, length),
    }  # fmt: skip


def _step(model: Any, switch: Any, optimizer: Any, ids: torch.Tensor) -> None:
    if switch is not None:
        switch.before_step()
    model(input_ids=ids, labels=ids).loss.backward()
    if switch is not None:
        switch.after_backward()
    optimizer.step()
    optimizer.zero_grad()


def _estimated(config: LlamaConfig, arm: str, policy: Any, length: int) -> int | None:
    """What `gradwise estimate` says; it knows no offload without a layer policy."""
    sections: dict[str, Any] = {} if policy is None else {"layers": policy}
    if arm == "lora":
        sections["adapter"] = Adapter(method="lora", options={"r": 128, "lora_dropout": 0.0})
    if arm == "adamw-offload":
        return None
    with tempfile.TemporaryDirectory() as folder:
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        data: Any = Data(train="unread.jsonl", max_length=length)  # type: ignore[arg-type]
        train = Train(batch_size=ROWS, arguments={"per_device_train_batch_size": ROWS})
        try:
            model = Model(name=folder, dtype="bfloat16")
            return estimate(Recipe(model=model, data=data, train=train, **sections)).peak
        except GradwiseError:
            return None


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
