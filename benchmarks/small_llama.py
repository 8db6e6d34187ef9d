"""Makes the small Llama that benchmarks with many seeds are run on: 9 M parameters, pre-trained on the spot.

    python benchmarks/small_llama.py        # build/small_llama; a quarter of an hour on one core

A byte-level BPE tokenizer of 4,096 tokens, a Llama of six blocks, and 0.65 M tokens of plays, an
encyclopedia, stories and Dolly's instructions (`small_data.py`), through gradwise's own `train`: packed rows,
warm-up, stable phase, decay. What it leaves:

    data/       the parts, JSONL; those for fine-tuning are `tune`, `rates` and `check`
    start/      the random model and its tokenizer
    run/        the run directory; a killed run goes on
    stable/     the model at the end of the stable phase, for work on annealing
    annealed/   the finished model, for everything else

It writes poor English and no correct arithmetic; what it has is a real pre-trained model's state: a loss far
below that of frequencies, differences between domains, and room to learn.
"""

import argparse
import os
import shutil
from functools import partial
from pathlib import Path

# Two thread pools on a busy machine wait for each other; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from frame import ROOT, made_whole
from small_data import write_parts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradwise.data import Data, Source
from gradwise.recipe import Model, Recipe, Train
from gradwise.report.reading import read_run
from gradwise.run import train

FOLDER = ROOT / "build" / "small_llama"
VOCABULARY = 4096
LENGTH = 512
STEPS = 720
STABLE = 540
"""Steps before the decay; a checkpoint falls on the last of them."""
SEED = 0
END, PAD = "<|end|>", "<|pad|>"


def made(folder: Path = FOLDER) -> Path:
    """The folder with the finished model, made first where it is not there."""
    if not (folder / "annealed").is_dir():
        make(folder)
    return folder


def make(folder: Path) -> None:
    """Data, random model, training, and the two models that come of it; goes on where it was stopped."""
    made_whole(folder / "start", partial(_begin, folder / "data"))
    outcome = train(recipe(folder), folder / "run")
    if not outcome.finished:
        raise SystemExit("Stopped; run the same command to go on.")
    for name, source in (("stable", f"run/checkpoints/checkpoint-{STABLE}"), ("annealed", "run/model")):
        _keep_model(folder / source, folder / name, folder / "start")


def _begin(data: Path, start: Path) -> None:
    write_parts(data)
    tokenizer = new_tokenizer(sorted((data / "pretrain").glob("*.jsonl")))
    new_model(tokenizer).save_pretrained(start)
    tokenizer.save_pretrained(start)


def _keep_model(source: Path, target: Path, start: Path) -> None:
    """A checkpoint's model with the tokenizer, put in place in one move."""

    def kept(folder: Path) -> None:
        shutil.copytree(start, folder, dirs_exist_ok=True)
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder)

    shutil.rmtree(target, ignore_errors=True)
    made_whole(target, kept)


def new_tokenizer(files: list[Path]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the pre-training files."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((path.read_text(encoding="utf-8") for path in files), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, model_max_length=LENGTH
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights, the same every time."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=320,
        intermediate_size=896,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.vocab[END],
        pad_token_id=tokenizer.vocab[PAD],
    )
    return LlamaForCausalLM(config)


def recipe(folder: Path) -> Recipe:
    """Pre-training: every token is learned, prompts among them."""

    def sources(part: str) -> list[Source]:
        files = sorted((folder / "data" / part).glob("*.jsonl"))
        return [Source(str(file), domain=file.stem) for file in files]

    return Recipe(
        model=Model(name=str(folder / "start")),
        data=Data(
            train=sources("pretrain"),
            validation=sources("pretrain_check"),
            max_length=LENGTH,
            packing=True,
            loss_on="all",
        ),
        train=Train(
            # Two rows: at so few tokens, twice the steps teach more than half the noise.
            batch_size=2,
            learning_rate=2e-3,
            schedule="wsd",
            decay=1 - STABLE / STEPS,
            arguments={
                "max_steps": STEPS,
                "warmup_steps": 40,
                "per_device_train_batch_size": 2,
                "weight_decay": 0.1,
                "adam_beta2": 0.98,
                "eval_strategy": "steps",
                "eval_steps": STABLE,
                "eval_on_start": False,
                "save_strategy": "steps",
                "save_steps": STABLE // 3,
                "save_total_limit": 5,
                "use_cpu": True,
                "report_to": "none",
            },
        ),
        seed=SEED,
    )


def held_out(folder: Path) -> dict[str, float]:
    """Held-out loss of the finished model, nats per token: over all text, and by domain."""
    scores = read_run(folder / "run", "small Llama", SEED).scores
    return {name: score.value for name, score in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="where it is made")
    folder = parser.parse_args().out
    made(folder)
    for name, loss in held_out(folder).items():
        print(f"{name}: {loss:.3f} nats per token")
    print(f"{folder / 'annealed'}")


if __name__ == "__main__":
    main()
