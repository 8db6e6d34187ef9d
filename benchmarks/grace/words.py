"""The n-gram stage of a selection towards a target: garbage, unrelated pools, and a million texts.

    python -m benchmarks.grace.words        # some minutes

Each pool has 3,198 texts in six equal parts: GSM8K, three parts of BoolQ, OpenBookQA and ARC, Dolly, and
plays with an encyclopedia. A target is 64 texts of a set that is not in the pool. 160 garbage texts are made
from other texts of the target's set: their words are shuffled, or their first sentence is repeated to 300
characters and at least three times. The picks are the 168 texts (5 %) that rank first. The unrelated pool
holds plays alone. The million texts are 100 random words each, read from a file on disk through a tokenizer
of whole words.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.command_line import Script
from benchmarks.common.folders import DATA
from benchmarks.common.memory import peak_gib
from benchmarks.common.own_process import in_own_process
from benchmarks.common.records import TEXTS, as_prompt, chunks, instructions
from benchmarks.common.tables import Claim, Content, Page, of_kind, table
from gradwise.data.texts import Texts
from gradwise.methods.targeting import Subtasks, match_ngrams
from gradwise.numerics.ngrams import Chunk, Counts, affinity, compile_kernels, word_ids

POOL, TARGET, GARBAGE, PICKS = 3200, 64, 160, 168
TARGETS = {
    "SVAMP": "arithmetic/SVAMP.json", "AQuA": "arithmetic/AQuA.json", "PIQA": "commonsense/test/piqa.json",
    "SIQA": "commonsense/test/social_i_qa.json", "GSM8K": "arithmetic/gsm8k.json",
}  # fmt: skip
KINDS = ("shuffled", "repeated")
SEEDS = range(3)
SIZES = (250_000, 1_000_000)


class Given(Texts):
    """Texts at hand instead of tokens."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__([{"input_ids": [0]}] * len(texts))
        self.texts = texts

    def take(self, rows: Any) -> "Given":
        return Given([self.texts[int(row)] for row in rows])

    def chunks(self) -> Iterator[Chunk]:
        yield word_ids(self.texts)


@cache
def sources() -> list[list[str]]:
    """Texts of the six sets."""
    commonsense = [_whole(as_prompt(record, "")) for record in instructions("commonsense")]
    quarters = np.array_split(np.arange(len(commonsense)), 3)
    return [
        [_whole(as_prompt(record, "")) for record in instructions("gsm8k")],
        *([commonsense[row] for row in rows] for rows in quarters),
        [_whole(as_prompt(record, "")) for record in instructions("dolly")],
        [*_plays("plays"), *_plays("encyclopedia")],
    ]


@cache
def target_texts(name: str) -> list[str]:
    """Texts of a target's set."""
    records = json.loads((DATA / TARGETS[name]).read_text())
    return [f"{record['instruction']}\n{record['output']}" for record in records]


def _whole(record: dict[str, str]) -> str:
    return record["prompt"] + record["completion"]


def _plays(name: str) -> list[str]:
    return [record["text"] for record in chunks((DATA / TEXTS[name]).read_text(encoding="utf-8"))]


def pool(seed: int) -> list[str]:
    """A pool of the six sets in equal parts."""
    rng = np.random.default_rng(seed)
    return [texts[row] for texts in sources() for row in rng.choice(len(texts), POOL // 6, replace=False)]


def garbled(text: str, kind: str, rng: np.random.Generator) -> str:
    """A text's words in random order, or its first sentence again and again."""
    if kind == "shuffled":
        return " ".join(rng.permutation(text.split()))
    first = text.split(".")[0] + ". "
    return first * max(3, 300 // len(first))


def garbage(name: str, kind: str, seed: int) -> dict[str, Any]:
    """Shares of garbage among the picks, and what tells it from natural texts."""
    rng = np.random.default_rng([seed, 1])
    rows = rng.permutation(len(target_texts(name)))
    aims = [target_texts(name)[row] for row in rows[:TARGET]]
    junk = [garbled(target_texts(name)[row], kind, rng) for row in rows[TARGET : TARGET + GARBAGE]]
    texts = [*pool(seed), *junk]
    natural = len(texts) - len(junk)
    chunk, aim = word_ids(texts), word_ids(aims)
    counts = Counts.of([chunk])
    affinities = affinity([chunk], counts, Counts.of([aim]))
    stage = match_ngrams(Given(texts), Given(aims), Subtasks.of_domains(None, TARGET), PICKS)
    measured = affinities.cohesion if kind == "shuffled" else affinities.variety
    return {
        "of_pool": len(junk) / len(texts),
        "of_picks_by_ratio": float((np.argsort(-affinities.ratio, kind="stable")[:PICKS] >= natural).mean()),
        "of_picks": float((stage.best(PICKS) >= natural).mean()),
        "natural_ranked_last": float(stage.garbled[:natural].mean()),
        "natural": np.percentile(measured[:natural], [5, 50]).round(3).tolist(),
        "garbage": np.percentile(measured[natural:], [50, 95]).round(3).tolist(),
    }


def closeness(name: str, seed: int) -> dict[str, float]:
    """Closeness of the mixed pool and of plays alone."""
    rng = np.random.default_rng([seed, 2])
    aims = Given([target_texts(name)[row] for row in rng.permutation(len(target_texts(name)))[:TARGET]])
    subtasks = Subtasks.of_domains(None, TARGET)
    return {
        kind: match_ngrams(Given(texts), aims, subtasks, PICKS).closeness
        for kind, texts in (("mixed", pool(seed)), ("plays", _plays("plays")))
    }


def million(size: int) -> dict[str, Any]:
    """Seconds and peak memory of the stage over tokenised texts on disk."""
    import datasets
    import pyarrow as pa

    compile_kernels()
    words = [f"word{number}" for number in range(20_000)]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
        path = Path(folder) / "texts.arrow"
        schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for _ in range(size // 10_000):
                ids = (rng.zipf(1.3, 10_000 * 100) % len(words)).astype(np.int32)
                rows = pa.ListArray.from_arrays(np.arange(0, 1_000_001, 100, dtype=np.int32), pa.array(ids))
                writer.write_batch(pa.record_batch([rows], schema=schema))
        texts = Texts(datasets.Dataset.from_file(str(path)), WholeWords(words))
        aims = Texts([{"input_ids": rng.integers(0, 500, 100)} for _ in range(TARGET)], WholeWords(words))
        before, start = peak_gib(), time.perf_counter()
        match_ngrams(texts, aims, Subtasks.of_domains(None, TARGET), size // 20)
        seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "per_second": round(size / seconds), "gib": [before, peak_gib()]}


class WholeWords:
    """A tokenizer whose tokens are words."""

    def __init__(self, words: list[str]) -> None:
        self.words = np.array(words, dtype=object)

    def batch_decode(self, sequences: list[list[int]], **_: Any) -> list[str]:
        return [" ".join(self.words[row]) for row in sequences]


def page(content: Content) -> Page:
    shares = of_kind(content, "garbage")
    by_kind = {
        kind: [entry for name, entry in shares.items() if f"/{kind}/" in f"/{name}/"] for kind in KINDS
    }
    rows = [
        [
            kind,
            f"{max(entry['of_pool'] for entry in entries):.1%}",
            f"{max(entry['of_picks_by_ratio'] for entry in entries):.1%}",
            f"{max(entry['of_picks'] for entry in entries):.1%}",
            f"{sum(entry['of_picks'] > entry['of_pool'] for entry in entries)} of {len(entries)}",
            f"{max(entry['natural_ranked_last'] for entry in entries):.1%}",
            *(
                f"{min(entry['natural'][place] for entry in entries):.2f}" for place in range(2)
            ),
            *(
                f"{max(entry['garbage'][place] for entry in entries):.2f}" for place in range(2)
            ),
        ]
        for kind, entries in by_kind.items()
    ]  # fmt: skip
    head = [
        "garbage", "of the pool", "of the picks, ratio alone", "of the picks", "above its share",
        "natural texts ranked last", "natural 5 %", "natural median", "garbage median", "garbage 95 %",
    ]  # fmt: skip
    close = of_kind(content, "closeness")
    names = list(dict.fromkeys(name.split("/")[0] for name in close))
    closest = [
        [name, *(_range([entry[kind] for key, entry in close.items() if key.startswith(name)]) for kind in
        ("mixed", "plays"))] for name in names
    ]  # fmt: skip
    speed = of_kind(content, "million")
    times = [
        [f"{int(size):,}", f"{entry['seconds']:.0f}", f"{entry['per_second']:,}", f"{entry['gib'][1]:.2f}"]
        for size, entry in speed.items()
    ]
    over = sum(entry["of_picks"] > entry["of_pool"] for entry in shares.values())
    explained = (
        "Worst values over targets and seeds. Natural and garbage texts are compared by cohesion (shuffled) "
        "or variety (repeated)."
    )
    return Page(
        sections=[
            explained, table(head, rows),
            "Closeness, lowest to highest over the seeds.", table(["target", "mixed pool", "plays"], closest),
            table(["texts", "seconds", "texts/s", "peak GiB"], times),
        ],
        claims=[
            Claim(
                "garbage that imitates a target exceeds its share of the picks",
                f"{over} of {len(shares)} selections", str(len(SEEDS)),
            ),
        ],
    )  # fmt: skip


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


SCRIPT = Script(__doc__, "grace-words")


def main() -> None:
    _, result = SCRIPT.start()
    for name in TARGETS:
        for seed in SEEDS:
            for kind in KINDS:
                result.once(f"garbage/{name}/{kind}/{seed}", partial(garbage, name, kind, seed))
            result.once(f"closeness/{name}/{seed}", partial(closeness, name, seed))
    for size in SIZES:
        work = partial(in_own_process, "benchmarks.grace.words:million", size)
        result.once(f"million/{size}", work)


if __name__ == "__main__":
    main()
