"""The models and data of `signals.py`, and what all its parts measure with.

- `llama10m`: a Llama of 9.8 M parameters (4 blocks, width 384, vocabulary 4,096) with random weights and
  random tokens, full rows without padding: what time and memory are measured on;
- `smollm2`: SmolLM2-135M-Instruct and GSM8K;
- `stories`: stories260K and TinyStories, its own training text;
- `small_llama`: the Llama of 8.9 M parameters that `small_llama.py` trains, GSM8K and Dolly in equal parts.
"""

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import small_llama
import torch
from frame import DATA
from numpy.typing import NDArray
from small_data import chunks, instructions
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from gradwise.demo import ASSETS, smollm2_recipe
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer

Sample = dict[str, list[int]]
Batch = dict[str, Tensor]

STATUS = Path("/proc/self/status")
SETTLED = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
"""Makes glibc give freed blocks of 256 KiB or more back at once, so that a peak holds no holes of its
heap."""


class Subject(NamedTuple):
    """A model in float32 and samples for it."""

    model: Any
    samples: list[Sample]


def subject(name: str, count: int) -> Subject:
    """A subject by name, with `count` samples of whatever length they have."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, samples = {
        "llama10m": _llama10m,
        "smollm2": _smollm2,
        "stories": _stories,
        "small_llama": _small_llama,
    }[name](count)
    return Subject(model.eval(), samples)


def full_rows(name: str, rows: int, length: int) -> tuple[Any, list[Batch]]:
    """A model and batches of one row each, of `length` tokens that all count, without padding."""
    if name == "llama10m":
        model, samples = subject(name, rows)
    else:
        model, samples = subject(name, 4 * rows * length // 100)
    tokens = [token for sample in samples for token in sample["input_ids"]]
    table = torch.tensor(tokens[: rows * length]).view(rows, length)
    return model, [as_batch(row[None]) for row in table]


def as_batch(ids_BT: Tensor) -> Batch:
    """A batch in which every token counts."""
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": ids_BT}


def joined(batches: list[Batch]) -> Batch:
    """One batch of several of the same length."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


# ---- the four ----------------------------------------------------------------------------------------------


def _llama10m(count: int) -> tuple[Any, list[Sample]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=384, intermediate_size=1280, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, config.vocab_size, (count, 256), generator=torch.Generator().manual_seed(1))
    return model, [{"input_ids": row, "labels": row} for row in ids.tolist()]


def _smollm2(count: int) -> tuple[Any, list[Sample]]:
    made: Any = smollm2_recipe().model
    return load_model(made), _questions(load_tokenizer(made), "gsm8k", count)


def _stories(count: int) -> tuple[Any, list[Sample]]:
    made = Model(name=str(ASSETS / "stories260K"))
    tokenizer = load_tokenizer(made)
    text = (DATA / "text" / "tinystories.txt").read_text(encoding="utf-8")
    pieces = [tokenizer(piece["text"])["input_ids"][:256] for piece in chunks(text)[: 4 * count]]
    ids = [piece for piece in pieces if len(piece) > 1][:count]
    return load_model(made), [{"input_ids": one, "labels": one} for one in ids]


def _small_llama(count: int) -> tuple[Any, list[Sample]]:
    made = Model(name=str(small_llama.made() / "annealed"))
    tokenizer = load_tokenizer(made)
    half = count // 2
    samples = [*_questions(tokenizer, "gsm8k", count - half), *_questions(tokenizer, "dolly", half)]
    return load_model(made), samples


def _questions(tokenizer: Any, domain: str, count: int) -> list[Sample]:
    """Question and answer in plain text, the answer counted, at most 256 tokens."""
    samples = []
    for record in instructions(domain):
        *asked, answer = record.values()
        prompt = tokenizer(" ".join(part for part in asked if part) + "\n")["input_ids"]
        ids = [*prompt, *tokenizer(answer)["input_ids"]][:256]
        if len(ids) - len(prompt) > 1:
            samples.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
        if len(samples) == count:
            break
    return samples


# ---- measuring ---------------------------------------------------------------------------------------------


def ordinary(model: Any, batch: Batch) -> None:
    """What everything is measured against: forward and backward with gradients of all weights."""
    model.zero_grad(set_to_none=True)
    model(**batch, use_cache=False).loss.backward()


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turn(
    arms: dict[str, Callable[[int], Any]], rounds: int, *, warm: bool = True
) -> dict[str, list[tuple[float, float]]]:
    """Wall-clock and processor seconds of every arm in every round, all arms one after the other; each is
    given the number of the round, and with `warm` is run once before without being timed."""
    for arm in arms.values() if warm else ():
        arm(0)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for number in range(rounds):
        for name, arm in arms.items():
            seconds[name].append(timed(lambda arm=arm, number=number: arm(number)))
    return seconds


def resident(what: str = "VmRSS") -> int:
    """Bytes of this process' resident memory, now (VmRSS) or at its highest since the last reset (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


@contextmanager
def peak_over_now() -> Iterator[list[int]]:
    """Appends how far resident memory rose over what it was at the beginning, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, found = resident(), []
    yield found
    found.append(resident("VmHWM") - before)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what others print."""
    with ExitStack() as stack:
        nowhere = stack.enter_context(Path("/dev/null").open("w"))
        stack.enter_context(redirect_stdout(nowhere))
        stack.enter_context(redirect_stderr(nowhere))
        yield


# ---- inner products ----------------------------------------------------------------------------------------


class Errors(NamedTuple):
    """Of (<z_i, z_j> - <g_i, g_j>) / (|g_i| |g_j|): root mean squares over pairs i < j and over i = j, then
    the mean over pairs."""

    pairs: float
    own: float
    bias: float


def errors(projected_Nk: NDArray, gram_NN: NDArray) -> Errors:
    """How far the inner products of projections are from the true ones."""
    z = projected_Nk.astype(np.float64)
    norms = np.sqrt(np.diag(gram_NN))
    off = (z @ z.T - gram_NN) / np.outer(norms, norms)
    above = off[np.triu_indices(len(off), 1)]
    root = np.sqrt
    return Errors(
        float(root((above**2).mean())), float(root((np.diag(off) ** 2).mean())), float(above.mean())
    )


def dense(gram_NN: NDArray, size: int, seed: int) -> NDArray:
    """(N, k) projections by a dense Gaussian matrix, exactly as they are distributed.

    With independent Gaussian entries of variance 1/k, the k coordinates of all samples together are k
    independent draws from a Gaussian whose covariance is the Gram matrix over k; the matrix of P x k numbers
    need not be made.
    """
    values, vectors = np.linalg.eigh(gram_NN)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    return root @ np.random.default_rng(seed).standard_normal((len(gram_NN), size)) / np.sqrt(size)
