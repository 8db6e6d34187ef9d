"""Models and data of the signal benchmarks, and errors of inner products.

- `llama10m`: a Llama of 9.8 M parameters (4 blocks, width 384, vocabulary 4,096) with random weights and
  random tokens, full rows without padding: time and memory are measured on it;
- `smollm2`: SmolLM2-135M-Instruct and GSM8K;
- `stories`: stories260K and TinyStories, its own training text;
- `small_llama`: the Llama of 8.9 M parameters of `common.small_llama`, GSM8K and Dolly in equal parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import small_llama
from benchmarks.common.command_line import silence_libraries
from benchmarks.common.folders import DATA
from benchmarks.common.records import chunks, instructions
from benchmarks.common.smollm2 import STORIES, packaged
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer

Sample = dict[str, list[int]]
Batch = dict[str, Tensor]

TITLES = {
    "llama10m": "Llama, 9.8 M parameters (4 blocks, width 384, vocabulary 4,096; random weights and tokens)",
    "smollm2": "SmolLM2-135M-Instruct, GSM8K text",
    "stories": "stories260K, TinyStories",
    "small_llama": "the Llama of 8.9 M parameters, GSM8K and Dolly",
}


class Subject(NamedTuple):
    """A model in float32 and samples for it."""

    model: Any
    samples: list[Sample]


def subject(name: str, count: int) -> Subject:
    """A subject by name, with `count` samples at their own lengths."""
    silence_libraries()
    model, samples = SUBJECTS[name](count)
    return Subject(model.eval(), samples)


def full_rows(name: str, rows: int, length: int) -> tuple[Any, list[Batch]]:
    """A model and batches of one row each, of `length` label tokens without padding."""
    model, samples = subject(name, rows if name == "llama10m" else 4 * rows * length // 100)
    tokens = [token for sample in samples for token in sample["input_ids"]]
    table = torch.tensor(tokens[: rows * length]).view(rows, length)
    return model, [as_batch(row[None]) for row in table]


def as_batch(ids_BT: Tensor) -> Batch:
    """A batch in which every token has a label."""
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": ids_BT}


def joined(batches: list[Batch]) -> Batch:
    """One batch of several of the same length."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def train_step(model: Any, batch: Batch) -> None:
    """The reference of all costs: forward and backward with gradients of all weights."""
    model.zero_grad(set_to_none=True)
    model(**batch, use_cache=False).loss.backward()


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
    return load_model(packaged()), _questions(load_tokenizer(packaged()), "gsm8k", count)


def _stories(count: int) -> tuple[Any, list[Sample]]:
    settings = Model(name=str(STORIES))
    tokenizer = load_tokenizer(settings)
    text = (DATA / "text" / "tinystories.txt").read_text(encoding="utf-8")
    pieces = [tokenizer(piece["text"])["input_ids"][:256] for piece in chunks(text)[: 4 * count]]
    ids = [piece for piece in pieces if len(piece) > 1][:count]
    return load_model(settings), [{"input_ids": one, "labels": one} for one in ids]


def _small_llama(count: int) -> tuple[Any, list[Sample]]:
    settings = Model(name=str(small_llama.build() / "annealed"))
    tokenizer = load_tokenizer(settings)
    half = count // 2
    samples = [*_questions(tokenizer, "gsm8k", count - half), *_questions(tokenizer, "dolly", half)]
    return load_model(settings), samples


SUBJECTS: dict[str, Callable[[int], tuple[Any, list[Sample]]]] = {
    "llama10m": _llama10m, "stories": _stories, "small_llama": _small_llama, "smollm2": _smollm2,
}  # fmt: skip


def _questions(tokenizer: Any, domain: str, count: int) -> list[Sample]:
    """Question and answer in plain text, labels on the answer, at most 256 tokens."""
    samples = []
    for record in instructions(domain):
        *question, answer = record.values()
        prompt = tokenizer(" ".join(part for part in question if part) + "\n")["input_ids"]
        ids = [*prompt, *tokenizer(answer)["input_ids"]][:256]
        if len(ids) - len(prompt) > 1:
            samples.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
        if len(samples) == count:
            break
    return samples


class Errors(NamedTuple):
    """Statistics of (<z_i, z_j> - <g_i, g_j>) / (|g_i| |g_j|).

    Root mean squares over pairs i < j and over i = j, then the mean over pairs.
    """

    pairs: float
    diagonal: float
    bias: float


def errors(projected_Nk: NDArray, gram_NN: NDArray) -> Errors:
    """Deviation of the inner products of projections from the exact ones."""
    z = projected_Nk.astype(np.float64)
    norms = np.sqrt(np.diag(gram_NN))
    off = (z @ z.T - gram_NN) / np.outer(norms, norms)
    above = off[np.triu_indices(len(off), 1)]
    return Errors(
        float(np.sqrt((above**2).mean())), float(np.sqrt((np.diag(off) ** 2).mean())), float(above.mean())
    )


def dense(gram_NN: NDArray, size: int, seed: int) -> NDArray:
    """(N, k) projections by a dense Gaussian matrix, drawn from their exact distribution.

    With independent Gaussian entries of variance 1/k, the k coordinates of all samples together are k
    independent draws from a Gaussian whose covariance is the Gram matrix over k, so the matrix of P x k
    numbers is not needed.
    """
    values, vectors = np.linalg.eigh(gram_NN)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    return root @ np.random.default_rng(seed).standard_normal((len(gram_NN), size)) / np.sqrt(size)


def root_mean_square(values: list[float]) -> float:
    """Combine the root mean squares of several seeds into one."""
    return float(np.sqrt(np.mean(np.square(values))))
