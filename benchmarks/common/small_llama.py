"""The small Llama on which benchmarks with many seeds run: 9 M parameters, pre-trained here.

    python -m benchmarks.common.small_llama     # build/small_llama; a quarter of an hour on one core

A byte-level BPE tokenizer of 4,096 tokens, a Llama of six blocks, and 0.65 M tokens of plays, an
encyclopedia, stories and Dolly's instructions (`records.py`), through gradwise's own `train`: packed rows,
warm-up, stable phase, decay. The folder then holds:

    data/       the parts, JSONL; `tune`, `rates` and `check` are for fine-tuning
    start/      the random model and its tokenizer
    run/        the run directory; an interrupted run resumes
    stable/     the model at the end of the stable phase, for work on annealing
    annealed/   the trained model, for everything else

The model writes poor English and no correct arithmetic. It has what benchmarks need of a pre-trained model: a
loss far below that of token frequencies, differences between domains, and room to learn.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.common.folders import BUILD, build_folder
from benchmarks.common.records import write_parts
from gradwise.data import Data, Source
from gradwise.recipe import Model, Recipe, Train
from gradwise.report.reading import read_run
from gradwise.run import train

FOLDER = BUILD / "small_llama"
VOCABULARY = 4096
LENGTH = 512
STEPS = 720
STABLE = 540
"""Steps before the decay; the last one has a checkpoint."""
SEED = 0
END, PAD = "<|end|>", "<|pad|>"


def build(folder: Path = FOLDER) -> Path:
    """The folder with the trained model, which is made first if it is absent."""
    if not (folder / "annealed").is_dir():
        _make(folder)
    return folder


def _make(folder: Path) -> None:
    """Data, random model, training, and the two models that it leaves; resumes if interrupted."""
    build_folder(folder / "start", partial(_write_start, folder / "data"))
    outcome = train(recipe(folder), folder / "run")
    if not outcome.finished:
        raise SystemExit("Interrupted; run the same command to resume.")
    for name, source in (("stable", f"run/checkpoints/checkpoint-{STABLE}"), ("annealed", "run/model")):
        _keep_model(folder / source, folder / name, folder / "start")


def _write_start(data: Path, start: Path) -> None:
    write_parts(data)
    tokenizer = new_tokenizer(sorted((data / "pretrain").glob("*.jsonl")))
    new_model(tokenizer).save_pretrained(start)
    tokenizer.save_pretrained(start)


def _keep_model(source: Path, target: Path, start: Path) -> None:
    """A checkpoint's model with the tokenizer."""

    def copy(folder: Path) -> None:
        shutil.copytree(start, folder, dirs_exist_ok=True)
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder)

    shutil.rmtree(target, ignore_errors=True)
    build_folder(target, copy)


def new_tokenizer(files: list[Path]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the pre-training files."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END, PAD], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator((path.read_text(encoding="utf-8") for path in files), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, model_max_length=LENGTH
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights from a fixed seed."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=320, intermediate_size=896, num_hidden_layers=6,
        num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.vocab[END],
        pad_token_id=tokenizer.vocab[PAD],
    )  # fmt: skip
    return LlamaForCausalLM(config)


def recipe(folder: Path) -> Recipe:
    """Pre-training on every token, those of prompts included."""

    def sources(part: str) -> list[Source]:
        files = sorted((folder / "data" / part).glob("*.jsonl"))
        return [Source(str(file), domain=file.stem) for file in files]

    arguments = {
        "max_steps": STEPS, "warmup_steps": 40, "per_device_train_batch_size": 2, "weight_decay": 0.1,
        "adam_beta2": 0.98, "eval_strategy": "steps", "eval_steps": STABLE, "eval_on_start": False,
        "save_strategy": "steps", "save_steps": STABLE // 3, "save_total_limit": 5, "use_cpu": True,
        "report_to": "none",
    }  # fmt: skip
    return Recipe(
        model=Model(name=str(folder / "start")),
        data=Data(
            train=sources("pretrain"), validation=sources("pretrain_check"), max_length=LENGTH, packing=True,
            loss_on="all",
        ),
        # Batches of two rows: with so few tokens, twice the steps teach more than half the noise.
        train=Train(
            batch_size=2, learning_rate=2e-3, schedule="wsd", decay=1 - STABLE / STEPS, arguments=arguments
        ),
        seed=SEED,
    )  # fmt: skip


def held_out(folder: Path) -> dict[str, float]:
    """Held-out loss of the trained model, nats per token: over all text, and by domain."""
    scores = read_run(folder / "run", "small Llama", SEED).scores
    return {name: score.value for name, score in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the model and its data")
    folder = build(parser.parse_args().out)
    for name, loss in held_out(folder).items():
        print(f"{name}: {loss:.3f} nats per token")
    print(folder / "annealed")


if __name__ == "__main__":
    main()
