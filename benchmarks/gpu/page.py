"""What needs a GPU: every bar of the specifications, the piece of the kit that measures it, and the verdict.

`benchmarks.results` writes docs/results/gpu.md with it, from the files in `benchmarks/gpu/results`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.tables import Claim, Page, table
from benchmarks.gpu.run import ARMS, PEERS, RESULTS, SHAPES, SHARDED_ARMS

GIGA = 10**9
NOT_RUN, MET, NOT_MET, FAILED = "not yet run", "met", "not met", "failed"
LENGTHS = SHAPES["7b"]

Results = dict[str, dict[str, Any]]
"""Contents of the result files, by piece."""


@dataclass(frozen=True)
class Bar:
    """A number that the specifications bound."""

    text: str
    bound: str
    pieces: tuple[str, ...]
    """What it is computed from, in the order of `number`'s arguments."""
    number: Callable[..., float | None]
    """The value from what the pieces measured; None where they do not have it."""
    limit: float
    shown: str
    """Format of the number."""

    def row(self, results: Results) -> list[str]:
        """Text, bound, pieces, number, verdict."""
        number, verdict = None, _outcome(self.pieces, results)
        if verdict == MET:
            measured = [results[piece]["measured"] for piece in self.pieces]
            number = self.number(*measured) if all(measured) else None
            verdict = FAILED if number is None else MET if number <= self.limit else NOT_MET
        shown = "-" if number is None else self.shown.format(number)
        return [self.text, self.bound, _named(self.pieces), shown, verdict]


@dataclass(frozen=True)
class Tests:
    """What tests check; the bar is that they pass."""

    text: str
    piece: str

    def row(self, results: Results) -> list[str]:
        """Text, bound, piece, what pytest counted, verdict."""
        verdict = _outcome((self.piece,), results)
        output = results[self.piece]["output"] if self.piece in results else ""
        counted = next((line.strip("= ") for line in reversed(output.splitlines()) if " in " in line), "-")
        if verdict == MET and "passed" not in counted:
            verdict = NOT_RUN  # all of them were skipped
        return [self.text, "tests pass", _named((self.piece,)), counted, verdict]


def _outcome(pieces: tuple[str, ...], results: Results) -> str:
    """`MET` where all pieces ended well, so that their numbers decide."""
    if missing := [piece for piece in pieces if piece not in results]:
        return NOT_RUN if len(missing) == len(pieces) else "partly run"
    return MET if all(results[piece]["outcome"] == "done" for piece in pieces) else FAILED


def _named(pieces: tuple[str, ...]) -> str:
    return ", ".join(f"`{piece}`" for piece in pieces)


def _training(arm: str, length: int = LENGTHS[0]) -> str:
    return f"training-7b-{length}-{arm}"


def _memory_error(measured: dict[str, Any]) -> float | None:
    """Relative error of the estimated peak."""
    return abs(measured["estimated"] / measured["peak"] - 1) if measured.get("estimated") else None


def _time_error(measured: dict[str, Any], full: dict[str, Any]) -> float | None:
    """Relative error of the forecast step time, both as ratios to full training."""
    if not measured.get("forward_passes") or not full.get("forward_passes"):
        return None
    forecast = measured["forward_passes"] / full["forward_passes"]
    return abs(forecast / (measured["step_seconds"] / full["step_seconds"]) - 1)


FORECAST = tuple(arm for arm in ARMS if arm not in ("adamw-offload", "grass-stateless", *PEERS))
"""Arms that `gradwise estimate` knows."""

BARS = (
    Bar(
        "GRASS, LLaMA-7B shape, bfloat16, 4 x 1,024: peak memory",
        "19.1 GB",
        (_training("grass-offload"),),
        lambda offload: offload["peak"] / GIGA,
        19.1,
        "{:.2f} GB",
    ),
    Bar(
        "Offload: peak above that of the same run without optimizer state",
        "0.14 GB",
        (_training("grass-offload"), _training("grass-stateless")),
        lambda offload, stateless: (offload["peak"] - stateless["peak"]) / GIGA,
        0.14,
        "{:.3f} GB",
    ),
    *(
        Bar(
            f"Offload: step time over that with state on the device, length {length:,}",
            "1.05",
            (_training("grass-offload", length), _training("grass-keep", length)),
            lambda offload, keep: offload["step_seconds"] / keep["step_seconds"],
            1.05,
            "{:.3f}",
        )
        for length in sorted(LENGTHS)
    ),
    *(
        Bar(
            f"`gradwise estimate`: peak memory, {arm}",
            "within 10 %",
            (_training(arm),),
            _memory_error,
            0.10,
            "{:.1%}",
        )
        for arm in FORECAST
    ),
    *(
        Bar(
            f"`gradwise estimate`: ratio to the time of full training, {arm}",
            "within 25 %",
            (_training(arm), _training("full")),
            _time_error,
            0.25,
            "{:.1%}",
        )
        for arm in FORECAST
        if arm != "full"
    ),
    *(
        Bar(
            f"`gradwise estimate`: peak memory of a rank, FSDP2, {arm}",
            "within 10 %",
            (f"sharded-7b-1024-{arm}",),
            _memory_error,
            0.10,
            "{:.1%}",
        )
        for arm in SHARDED_ARMS
        if arm != "collect"
    ),
)
TESTS = (
    Tests(
        "Offload = keep bit for bit on CUDA streams; memory during the update",
        "tests-training-offload-test_on_gpu",
    ),
    Tests(
        "Loss scaling, fused optimizers, bfloat16, resume, memory of layer policies",
        "tests-training-test_gpu",
    ),
    Tests("FSDP2 on all GPUs follows one process", "tests-training-test_sharded_on_gpu"),
    Tests(
        "Signals: CPU and GPU agree, half precision, at most 64 MiB above activations",
        "tests-signals-test_signals_gpu",
    ),
    Tests("DiReCT's probes on a GPU", "tests-probing-test_probe_gpu"),
    Tests("Nearest neighbours on a GPU", "tests-numerics-test_knn_gpu"),
)
SIDE_BY_SIDE = (
    "Side by side, LLaMA-7B shape, bfloat16, with checkpointing: peak, step time, tokens per second"
)


INTRODUCTION = (
    "Every number that the specifications ask of a GPU, with the piece of the kit that measures it. "
    "`python -m benchmarks.gpu.run --list` lists all pieces. A piece without a result file has not run yet. "
    "GB are 10^9 bytes, allocated by torch at the peak."
)


def read(folder: Path = RESULTS) -> Results:
    """All result files of the kit."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: content for name, content in files.items() if not name.startswith(".")}


def page(results: Results) -> Page:
    """The table of bars, then what was measured side by side, and on which machines."""
    rows = [each.row(results) for each in (*BARS, *TESTS)]
    sides = [_training(arm, length) for length in LENGTHS for arm in ARMS]
    sharded = [f"sharded-7b-1024-{arm}" for arm in SHARDED_ARMS]
    for text, pieces in ((SIDE_BY_SIDE, sides), ("The same, sharded by FSDP2", sharded)):
        pattern = f"`{pieces[0].split('-7b-')[0]}-7b-*` ({len(pieces)})"
        rows.append([text, "-", pattern, "-", _reported(pieces, results)])
    verdicts = [row[-1] for row in rows]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    sections = [
        INTRODUCTION,
        table(["what", "at most", "pieces of the kit", "measured", "verdict"], rows),
        *_side_by_side([*sides, *sharded], results),
    ]
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    claim = Claim(
        f"What needs a GPU: {len(rows)} bars of the specifications", summary, verdict="see the page"
    )
    if set(verdicts) == {NOT_RUN}:
        claim = Claim(claim.text, "-", verdict=NOT_RUN)
    return Page(sections, [claim], command="python -m benchmarks.gpu.run")


def _reported(pieces: list[str], results: Results) -> str:
    done = sum(piece in results and results[piece]["outcome"] == "done" for piece in pieces)
    return f"{done} of {len(pieces)} run" if done else NOT_RUN


def _side_by_side(pieces: list[str], results: Results) -> list[str]:
    rows = []
    for piece in pieces:
        measured = results.get(piece, {}).get("measured")
        if measured is not None:
            peak = "-" if measured["peak"] is None else f"{measured['peak'] / GIGA:.2f}"
            seconds = measured.get("step_seconds", measured.get("seconds"))
            rows.append([f"`{piece}`", peak, f"{seconds:.3f}", f"{measured['tokens_per_second']:,.0f}"])
    if not rows:
        return []
    return [f"**{SIDE_BY_SIDE}**", table(["piece", "peak, GB", "seconds", "tokens per second"], rows)]


def origin(results: Results) -> str:
    """Machines, versions and revisions."""
    machines = dict.fromkeys(
        ", ".join(f"{name} {value}" for name, value in each["machine"].items() if value is not None)
        for each in results.values()
    )
    return "\n".join(["## Origin", "", *(f"- {each}" for each in machines or ["No piece has run yet."])])
