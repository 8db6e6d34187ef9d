"""Evaluates and trains for `test_evaluation`, on any number of ranks."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, TrainingArguments

import gradwise as gw
from gradwise.data import Collator
from gradwise.training.adapter import with_adapter


def squared(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    """A loss that is no cross-entropy; divides by what the Trainer counts."""
    kept = labels[:, 1:] != -100
    sums = outputs["logits"][:, :-1].float().square().mean(-1)[kept].sum()
    return sums / (kept.sum() if num_items_in_batch is None else num_items_in_batch)


CASES: dict[str, dict[str, Any]] = {
    "13 samples": {"samples": 13},
    "12 samples, even": {"samples": 12},
    "1 sample": {"samples": 1},
    "5 samples, one of them without labels": {"samples": 5, "blank": 2},
    "two sets": {"samples": (7, 2)},
    "predictions, moved now and then": {"samples": 7, "predictions": True, "eval_accumulation_steps": 1},
    "batches of 3": {"samples": 8, "per_device_eval_batch_size": 3},
    "packed training": {"samples": 5, "packed": True},
    "bfloat16": {"samples": 7, "bf16": True},
    "bfloat16 weights": {"samples": 7, "dtype": "bfloat16"},
    "adapter": {"samples": 7, "adapter": ("lora", {"r": 2, "init_lora_weights": False})},
    "prompt tuning": {"samples": 7, "adapter": ("prompt_tuning", {"num_virtual_tokens": 3})},
    "smoothed": {"samples": 7, "label_smoothing_factor": 0.1},
    "another loss": {"samples": 7, "loss": True},
    "layers": {"samples": 7, "recipe": {"layers": {"method": "grass", "active": 2, "probe": 1}}},
}
"""What is evaluated, and how."""


def run(name: str, model_folder: str, data: Any, out: Path) -> dict[str, Any]:
    """Evaluate, train two steps of twelve samples, evaluate again; the metrics and what was recorded."""
    AcceleratorState._reset_state()  # which would keep the first case's precision
    case = dict(CASES[name])
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=case.pop("dtype", "float32"))
    torch.manual_seed(0)
    if "adapter" in case:
        model = with_adapter(model, *case.pop("adapter"))
    sizes, blank, predictions = case.pop("samples"), case.pop("blank", None), case.pop("predictions", False)
    packed, loss, recipe = case.pop("packed", False), case.pop("loss", False), case.pop("recipe", {})
    rows = data.select(range(24, len(data)))
    if blank is not None:
        rows = rows.map(
            lambda row, i: row if i != blank else {"labels": [-100] * len(row["labels"])}, with_indices=True
        )
    sets = (
        rows.select(range(sizes))
        if isinstance(sizes, int)
        else {"one": rows.select(range(sizes[0])), "two": rows.select(range(10, 10 + sizes[1]))}
    )
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    settings: dict[str, Any] = {"per_device_eval_batch_size": 2} | case
    arguments = TrainingArguments(
        str(out / name),
        **settings,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=6 // ranks,
        learning_rate=1e-4,
        max_steps=2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        eval_on_start=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    seen: list[int] = []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen.append(len(prediction.label_ids))
        return {"labels": float((prediction.label_ids[:, 1:] != -100).sum())}

    trainer = gw.Trainer(
        model,
        arguments,
        Collator(0),
        data.select(range(24)),
        eval_dataset=sets,  # type: ignore[arg-type]
        recipe=gw.Recipe.from_dict({"order": "given", **recipe}),
        packed_length=96 if packed else None,
        compute_loss_func=squared if loss else None,
        compute_metrics=compute_metrics if predictions else None,
    )
    trainer.train()
    predicted = trainer.predict(data.select(range(3)))  # counts for no evaluation
    metrics = trainer.evaluate()
    lines = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
    return {"metrics": metrics, "predicted": predicted.metrics, "lines": lines, "seen": seen}
