"""Trains on several ranks under torchrun; what each rank saw and the weights go to files for `test_ranks`.

torchrun --nproc-per-node 2 ranks_worker.py SETTINGS.json
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, TrainingArguments

import gradwise as gw
from gradwise.data import Collator


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(settings["model"])
    arguments = TrainingArguments(
        settings["out"],
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **settings["arguments"],
    )
    data: Any = load_from_disk(settings["data"])
    if settings["streamed"]:
        data = data.select_columns(["input_ids", "labels"]).to_iterable_dataset()
    more: dict[str, Any] = (
        {"target_dataset": load_from_disk(target)} if (target := settings.get("target")) else {}
    )
    trainer = gw.Trainer(
        model, arguments, Collator(0), data, recipe=gw.Recipe.from_dict(settings["recipe"]), **more
    )  # type: ignore[arg-type]
    seen: list[list[list[int]]] = []
    inner = trainer.training_step

    def training_step(wrapped: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        real = [bool((labels != -100).any()) for labels in inputs["labels"]]
        rows = zip(inputs["input_ids"], inputs["attention_mask"], real, strict=True)
        seen.append([ids[mask.bool()].tolist() for ids, mask, counts in rows if counts])
        return inner(wrapped, inputs, *rest, **options)

    trainer.training_step = training_step  # type: ignore[method-assign]
    trainer.train(resume_from_checkpoint=settings.get("resume", False))
    out = Path(settings["out"])
    rank = arguments.process_index
    (out / f"seen-{rank}.json").write_text(json.dumps(seen))
    torch.save(model.state_dict(), out / f"weights-{rank}.pt")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
