"""Is `gradwise estimate` right about memory? Its peak against the measured peak of tensors in training.

    python -m benchmarks.layers.estimate      # SmolLM2-135M's shape with random weights; minutes on a CPU

Each arm trains through gradwise's Trainer on rows of full length while every tensor's bytes are counted from
its creation to its end. Layer policies draw again at each step, until all layers have had their turn: that is
the run that the estimate is about. The estimate itself reads only the model's configuration.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, TrainingArguments

from benchmarks.common import tables
from benchmarks.common.command_line import Script
from benchmarks.common.tables import Claim, Content, Page
from gradwise import Collator, Trainer
from gradwise.estimating import estimate
from gradwise.methods import Grass
from gradwise.methods.baselines import AllLayers, UniformLayers
from gradwise.recipe import Adapter, Data, Model, Recipe, Train
from gradwise.training.adapter import with_adapter
from gradwise.training.tensor_bytes import TensorBytes

SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
SHAPE = {"rows": 2, "length": 128, "active": 10, "steps": 14}
"""Micro-batch, tokens of a row, active layers, steps of a layer policy."""


def arms(active: int) -> dict[str, tuple[dict[str, Any], bool]]:
    """Sections of the recipe by arm, and whether the run must draw all layers."""
    return {
        "full": ({"layers": AllLayers()}, False),
        "lora": ({"adapter": Adapter(method="lora", options={"r": 16, "lora_dropout": 0.0})}, False),
        "lisa": ({"layers": UniformLayers(active=active, period=1)}, True),
        "grass": ({"layers": Grass(active=active, period=1, probe=1)}, True),
        "grass-drop": ({"layers": Grass(active=active, period=1, probe=1, state="drop")}, True),
    }


def compare(
    shape: dict[str, Any], arm: str, *, rows: int, length: int, active: int, steps: int
) -> dict[str, Any]:
    """Estimated and measured bytes of one arm."""
    sections, drawn = arms(active)[arm]
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
        LlamaConfig(**shape, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
        recipe = Recipe(
            model=Model(name=folder),
            data=Data(train="unread.jsonl", max_length=length),  # type: ignore[arg-type]
            train=Train(batch_size=rows, arguments={"per_device_train_batch_size": rows}),
            **sections,
        )
        predicted = estimate(recipe)
        measured, layers = _measured(recipe, Path(folder), rows, length, steps if drawn else 2)
    return {
        "estimated": predicted.peak,
        "measured": measured.at_peak.total(),
        "ratio": round(predicted.peak / measured.at_peak.total(), 4),
        "phase": predicted.traced.peak.name,
        "parts": predicted.traced.peak.parts,
        "layers_drawn": layers,
    }


def _measured(recipe: Recipe, folder: Path, rows: int, length: int, steps: int) -> tuple[TensorBytes, int]:
    """Bytes of all tensors during a run, and the number of layers that were drawn."""
    transformers.set_seed(0)
    assert recipe.model is not None
    config = transformers.AutoConfig.from_pretrained(recipe.model.name)
    model: Any = AutoModelForCausalLM.from_config(config)
    if recipe.adapter is not None:
        model = with_adapter(model, recipe.adapter.method, recipe.adapter.options)
    ids = torch.randint(0, config.vocab_size, (rows * steps, length)).tolist()
    arguments = TrainingArguments(
        str(folder / "out"), per_device_train_batch_size=rows, max_steps=steps, save_strategy="no",
        report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, learning_rate=1e-5,
    )  # fmt: skip
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])
    trainer = Trainer(model, arguments, Collator(0), data, recipe=Recipe(layers=recipe.layers))
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    counted, drawn = TensorBytes(), set()
    watch: Callable[[], Any] = trainer.session.draw_layers

    def draw_layers() -> None:
        watch()
        drawn.update(trainer.session.switch.active if trainer.session.switch else ())

    trainer.session.draw_layers = draw_layers  # type: ignore[method-assign]
    with counted.following(model):
        trainer.train()
    return counted, len(drawn)


def page(content: Content) -> Page:
    entries, one = tables.of_kind(content, "arm"), content["settings"]
    mebi = 2**20
    rows = [
        [
            f"`{arm}`",
            f"{e['estimated'] / mebi:.1f}",
            f"{e['measured'] / mebi:.1f}",
            f"{e['ratio']:.3f}",
            e["phase"],
        ]
        for arm, e in entries.items()
    ]
    worst = max(abs(entry["ratio"] - 1) for entry in entries.values())
    text = (
        f"SmolLM2-135M's shape, random weights, float32, AdamW; micro-batch of {SHAPE['rows']} rows of "
        f"{SHAPE['length']} tokens; layer policies with {SHAPE['active']} of 30 layers. Peak bytes of all "
        "tensors, MiB; the last column is the part of the run in which the estimate expects the peak."
    )
    assert one["part"] == "memory"
    table = tables.table(["arm", "estimated", "measured", "ratio", "peak in"], rows)
    return Page([text, table], [Claim("gradwise estimate: largest error of the peak", f"{worst:.1%}")])


SCRIPT = Script(__doc__, "estimate-memory")


def main() -> None:
    _, result = SCRIPT.start()
    for arm in arms(1):
        result.once(f"arm/{arm}", lambda arm=arm: compare(SMOLLM2, arm, **SHAPE))


if __name__ == "__main__":
    main()
