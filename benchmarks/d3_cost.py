"""What D3's questions cost, in forward and backward passes of an ordinary training step over as many samples.

Sixteen samples of 128 random tokens for a random Llama; processor time of one core, the least of some
repetitions.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import gradwise as gw

SAMPLES, LENGTH, REPEATS = 16, 128, 3


def subject() -> tuple[Any, list[Any]]:
    """A model and samples of full length."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=320, intermediate_size=896, num_hidden_layers=6,
        num_attention_heads=5, num_key_value_heads=5, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = np.random.default_rng(0).integers(3, 4096, (SAMPLES, LENGTH)).tolist()
    return model.float(), [{"input_ids": row, "labels": row} for row in ids]


def measured() -> dict[str, Any]:
    """Seconds of each question, and their ratios to a pass of training over one sample."""
    model, samples = subject()
    count, repeats = SAMPLES, REPEATS
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    places = list(range(count))

    def training() -> None:
        model.train()
        model(**gw.Collator(0)(samples)).loss.backward()

    def update() -> None:
        optimizer.step()

    training()
    update()
    whole = least(training, repeats)
    stepping = least(update, repeats)
    optimizer.zero_grad()
    probe = gw.Probe(model, optimizer, samples, batch_tokens=count * LENGTH)
    forward = least(lambda: probe.losses(places), repeats)
    # All samples are one unit and the target, whose gradient is taken besides.
    gradients = least(lambda: probe.bends([places], places[:1], hessian=False), repeats)
    bends = least(lambda: probe.bends([places], places[:1]), repeats)
    singly = least(lambda: probe.bends([[place] for place in places], places[:1]), repeats)
    alone = least(lambda: probe.bends([[place] for place in places], places[:1], hessian=False), repeats)
    slope = least(lambda: probe._gradient(places, probe._weights()), repeats)
    target = least(lambda: probe._gradient(places[:1], probe._weights()), repeats)
    # One trial step on one sample whose loss alone is compared.
    one = least(lambda: probe.lookahead([[0]], [0]), repeats)
    two = least(lambda: probe.lookahead([[0], [1]], [0]), repeats)
    single = least(lambda: probe.losses([0]), repeats)
    sample = whole / count
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "samples": count,
        "pass_seconds": sample,
        "forward": forward / whole,
        "gradient": slope / whole,
        "hessian": (bends - target) / whole,
        "hessian_singly": (singly - target) / whole,
        "first_order_singly": (alone - target) / whole,
        "first_order": (gradients - target) / whole,
        "update": stepping / sample,
        "trial_step": (two - one - target - single) / sample,
        "keeping": (one - (two - one) - single) / sample,
    }


def least(work: Callable[[], Any], repeats: int) -> float:
    """Processor seconds of the quickest of some repetitions."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)
