"""Cost of what D³ measures, in forward/backward passes of a training step over the same samples.

    python -m benchmarks.d3.cost            # a minute

Sixteen samples of 128 random tokens and a random Llama; processor time of one core, the least of three
repetitions, as a multiple of one forward/backward pass over one sample. `trial step`: a step of AdamW and
undoing it, without the gradient and the compared losses. `saving the state`: the copies made once for all
trial steps of a measurement. Both are costs per step; they do not depend on the samples and grow only with
the weights. `singly` treats every sample as a separate part, as edges do to estimate their noise; the
products of all pairs are included.
"""

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import gradwise as gw
from benchmarks.common.clocks import least_processor_time
from benchmarks.common.command_line import Script
from benchmarks.common.tables import Claim, Content, Page, number, of_kind, table

SAMPLES, LENGTH, REPEATS = 16, 128, 3


def subject() -> tuple[Any, list[Any]]:
    """A model, and samples of full length."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=320, intermediate_size=896, num_hidden_layers=6,
        num_attention_heads=5, num_key_value_heads=5, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = np.random.default_rng(0).integers(3, 4096, (SAMPLES, LENGTH)).tolist()
    return model.float(), [{"input_ids": row, "labels": row} for row in ids]


def measure() -> dict[str, Any]:
    """Seconds of everything that a `Probe` answers, relative to training on one sample."""
    model, samples = subject()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = list(range(SAMPLES))

    def train() -> None:
        model.train()
        model(**gw.Collator(0)(samples)).loss.backward()

    def update() -> None:
        optimizer.step()

    def least(work: Any) -> float:
        return least_processor_time(work, REPEATS)

    train()
    update()
    training, updating = least(train), least(update)
    optimizer.zero_grad()
    probe = gw.Probe(model, optimizer, samples, batch_tokens=SAMPLES * LENGTH)
    forward = least(lambda: probe.losses(rows))
    # All samples are one unit. The target's gradient comes on top and is subtracted below.
    gradients = least(lambda: probe.bends([rows], rows[:1], hessian=False))
    products = least(lambda: probe.bends([rows], rows[:1]))
    products_singly = least(lambda: probe.bends([[row] for row in rows], rows[:1]))
    gradients_singly = least(lambda: probe.bends([[row] for row in rows], rows[:1], hessian=False))
    gradient = least(lambda: probe._gradient(rows, probe._weights()))
    target = least(lambda: probe._gradient(rows[:1], probe._weights()))
    # One trial step on one sample; only that sample's loss is compared.
    one = least(lambda: probe.lookahead([[0]], [0]))
    two = least(lambda: probe.lookahead([[0], [1]], [0]))
    single = least(lambda: probe.losses([0]))
    sample = training / SAMPLES
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "samples": SAMPLES, "pass_seconds": sample,
        "forward": forward / training, "gradient": gradient / training,
        "hessian": (products - target) / training, "hessian_singly": (products_singly - target) / training,
        "first_order": (gradients - target) / training,
        "first_order_singly": (gradients_singly - target) / training, "update": updating / sample,
        "trial_step": (two - one - target - single) / sample,
        "keeping": (one - (two - one) - single) / sample,
    }  # fmt: skip


COLUMNS = {
    "forward": "forward", "gradient": "gradient", "first_order": "first order",
    "first_order_singly": "first order, singly", "hessian": "Hessian product",
    "hessian_singly": "Hessian product, singly", "trial_step": "trial step", "keeping": "saving the state",
}  # fmt: skip


def page(content: Content) -> Page:
    entries = of_kind(content, "cost")
    rows = [
        [
            name, f"{entry['parameters'] / 1e6:.1f}", number(entry["pass_seconds"], 3),
            *(number(entry[column], 2) for column in COLUMNS),
        ]
        for name, entry in entries.items()
    ]  # fmt: skip
    singly = entries["llama_10m"]["hessian_singly"]
    return Page(
        sections=[table(["model", "M weights", "forward/backward s", *COLUMNS.values()], rows)],
        claims=[Claim("D³'s curvature edges per probe sample, in forward/backward passes", f"{singly:.1f}")],
    )


SCRIPT = Script(__doc__, "d3-cost")


def main() -> None:
    SCRIPT.start()[1].once("cost/llama_10m", measure)


if __name__ == "__main__":
    main()
