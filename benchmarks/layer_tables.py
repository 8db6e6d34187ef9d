"""The tables of a `layers` result file, in Markdown."""

import statistics
from typing import Any

from frame import compare, mean_sd
from tables import COMPARISON_HEAD, comparison_row, number, of_kind, table

REFERENCES = ("full", "lora", "lisa")
"""Every other arm is compared with each of these; the first is the reference of ratios."""

MODELS = {"smollm2": "SmolLM2-135M-Instruct", "stories": "stories260K"}

MEBI = 2**20


def sections(content: dict[str, Any]) -> list[str]:
    """Paragraphs and tables, to be put below the file's heading."""
    parts = [
        _setting(content["settings"]),
        _tuning(content),
        _quality(content),
        _memory(content),
        _timing(content),
    ]
    return [part for part in parts if part]


def _setting(told: dict[str, Any]) -> str:
    largest = f" of at most {told['largest']} characters" if told["largest"] else ""
    lora = ", ".join(f"{name} {value}" for name, value in told["lora"].items())
    return (
        f"{MODELS[told['name']]}, records of `{told['train']}`{largest}; {told['steps']} optimizer steps of "
        f"{told['batch_size']} records (micro-batch {told['micro_batch']}, at most {told['max_length']} "
        "tokens), AdamW, float32, cosine schedule with 10 % warm-up, gradients clipped at norm 1. "
        f"Layer-wise arms: 2 active blocks, redrawn every {told['period']} steps; embeddings, head and "
        "final norm frozen except in `lisa-embeddings`; GRASS probes once. LoRA on all linear layers: "
        f"{lora}. Held-out loss on the first {told['held_out']} such records of `{told['test']}`, in nats "
        "per label token, every token with the same weight."
    )


# ---- learning rates ----------------------------------------------------------------------------------------


def _tuning(content: dict[str, Any]) -> str:
    told, rows = content["settings"], []
    for key, entry in of_kind(content, "tuning").items():
        tries = ", ".join(f"{t['learning_rate']:g}: {number(t['loss'], 4)}" for t in entry["tries"])
        chosen = f"{entry['chosen']:g}" + (" (edge of the grid)" if entry["at_edge"] else "")
        rows.append([f"`{key.split('/')[1]}`", tries, chosen])
    if not rows:
        return ""
    told = (
        f"**Learning rates**, chosen on seed {told['tuning_seed']} after {told['tuning_steps']} steps by "
        f"the loss on {told['tuning']} training records kept apart:"
    )
    return told + "\n\n" + table(["arm", "loss by learning rate", "chosen"], rows)


# ---- quality -----------------------------------------------------------------------------------------------


def _runs(content: dict[str, Any], kind: str = "quality") -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in of_kind(content, kind).values():
        if entry["loss"] is not None:
            found.setdefault(entry["arm"], {})[entry["seed"]] = entry
    return found


def _quality(content: dict[str, Any]) -> str:
    runs = _runs(content)
    if not runs:
        return ""
    untrained = content["entries"]["untrained/held_out"]
    told = (
        f"**Quality at equal optimizer steps.** Held-out loss before training: {untrained['loss']:.4f} "
        f"({untrained['held_out_tokens']:,} label tokens). Seconds are of the training loop with everything "
        "charged (GRASS's probe, drawing, measuring), loading and evaluation left out, the same for all "
        "arms; the machine was shared, so processor seconds tell more than wall-clock."
    )
    rows = [_quality_row(arm, by_seed) for arm, by_seed in runs.items()]
    head = [
        "arm",
        "learning rate",
        "seeds",
        "held-out loss",
        "sd",
        "wall-clock s",
        "of it probe s",
        "processor s",
    ]
    return "\n\n".join([told, table(head, rows), *_comparisons(runs)])


def _quality_row(arm: str, by_seed: dict[int, dict[str, Any]]) -> list[str]:
    mean, sd = mean_sd({seed: run["loss"] for seed, run in by_seed.items()})
    rates = "/".join(dict.fromkeys(_rate(run) for run in by_seed.values()))
    return [
        f"`{arm}`", rates, str(len(by_seed)), f"{mean:.4f}", number(sd, 4),
        f"{_mean(by_seed, 'seconds'):.1f}", f"{_mean(by_seed, 'probe_seconds'):.1f}",
        f"{_mean(by_seed, 'processor_seconds'):.1f}",
    ]  # fmt: skip


def _rate(run: dict[str, Any]) -> str:
    return f"{run['learning_rate']:g}" + ("" if run["tuned"] else " (not tuned)")


def _mean(by_seed: dict[int, dict[str, Any]], name: str) -> float:
    return statistics.fmean(run[name] for run in by_seed.values())


def _comparisons(runs: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    losses = {arm: {seed: run["loss"] for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
    parts = []
    for place, reference in enumerate(REFERENCES):
        # Full against LoRA is told once, by the table in which full is the reference.
        left = {arm: losses[arm] for arm in losses if arm not in REFERENCES[:place]}
        if reference in left and (found := compare(left, reference)):
            rows = [comparison_row(one) for one in found]
            parts.append(
                f"Against `{reference}`, paired by seed (negative: the arm is better):\n\n"
                + table(COMPARISON_HEAD, rows)
            )
    return parts


# ---- memory ------------------------------------------------------------------------------------------------


def _memory(content: dict[str, Any]) -> str:
    runs, short = _runs(content), _runs(content, "memory")
    parts = [_memory_told()] if runs or short else []
    if runs:
        parts += [
            "In the runs above, mean over the seeds, with glibc's allocator as it comes:",
            _memory_table(runs),
        ]
    if short:
        told = (
            "In short runs of two steps, with glibc's allocator told to give large blocks back at once "
            "(MALLOC_MMAP_THRESHOLD_), so that the rest is no holes in its heap:"
        )
        parts += [told, _memory_table(short)]
    return "\n\n".join(parts)


def _memory_table(runs: dict[str, dict[int, dict[str, Any]]]) -> str:
    peaks = {arm: statistics.fmean(_peaks(by_seed)) for arm, by_seed in runs.items()}
    whole = peaks.get(REFERENCES[0])
    rows = [_memory_row(arm, by_seed, peaks[arm], whole) for arm, by_seed in runs.items()]
    kinds = [
        "weights",
        "gradients",
        "m/a",
        "state",
        "m/a",
        "activations",
        "probe",
        "rest",
        "peak",
        "peak / full",
    ]
    return table(["arm", *kinds], rows)


def _memory_told() -> str:
    return (
        "**Memory by part**, MiB; each part at its own highest. Behind gradients and optimizer state stands "
        "measured / arithmetic (4 bytes per parameter and gradient, 8 for AdamW's moments plus 4 per tensor "
        "for its step count; active layers only, or all visited so far where their state is kept; LoRA: the "
        "adapter). Activations are what autograd saved for the backward pass, parameters left out; `probe` "
        "is GRASS's measuring pass over all layers. The peak is resident memory over what was resident just "
        "after loading; the rest is the peak less gradients, state and the larger of the two activations "
        "(workspaces, logits, gradients of activations, the allocator; below zero where the parts did not "
        "peak together)."
    )


def _memory_row(arm: str, by_seed: dict[int, Any], peak: float, whole: float | None) -> list[str]:
    part = {
        name: _part(by_seed, name)
        for name in ("weights", "gradients", "state", "activations", "probe_activations")
    }
    rest = peak - part["gradients"] - part["state"] - max(part["activations"], part["probe_activations"])
    ratios = {name: _ratios(by_seed, name) for name in ("gradients", "state")}
    probe = f"{part['probe_activations']:.1f}" if part["probe_activations"] else "-"
    shown = {name: f"{size:.1f}" for name, size in part.items()}
    return [
        f"`{arm}`", shown["weights"], shown["gradients"], ratios["gradients"], shown["state"],
        ratios["state"], shown["activations"], probe, f"{rest:.1f}", f"{peak:.1f}",
        f"{peak / whole:.2f}" if whole else "-",
    ]  # fmt: skip


def _peaks(by_seed: dict[int, dict[str, Any]]) -> list[float]:
    return [run["memory"]["peak_over_loaded"] / MEBI for run in by_seed.values()]


def _part(by_seed: dict[int, dict[str, Any]], name: str) -> float:
    return statistics.fmean(run["memory"][name] for run in by_seed.values()) / MEBI


def _ratios(by_seed: dict[int, dict[str, Any]], name: str) -> str:
    return (
        f"{statistics.fmean(run['memory'][name] / run['arithmetic'][name] for run in by_seed.values()):.4f}"
    )


# ---- time --------------------------------------------------------------------------------------------------


def _timing(content: dict[str, Any]) -> str:
    entry = content["entries"].get("timing/steps")
    if entry is None:
        return ""
    rounds = entry["rounds"]
    count, rows = len(entry["padded_tokens"]), []
    for arm, steps in rounds.items():
        probe = entry["probes"].get(arm)
        row = [f"`{arm}`", *(_seconds(steps, stage) for stage in STAGES)]
        rows.append(
            row + [_ratio(rounds, arm, stage, 1) for stage in STAGES] + [f"{probe[1]:.2f}" if probe else "-"]
        )
    told = (
        f"**Step time**, {entry['threads']} thread{'s' if entry['threads'] > 1 else ''}, all arms in turn "
        f"on the same {count} micro-batches ({min(entry['padded_tokens'])} to {max(entry['padded_tokens'])} "
        "tokens with padding), a new draw in every round. Median seconds by the wall-clock; then, as "
        "ratios to full training round by round, the median of processor time (the machine was shared). "
        "The probe is one pass, in processor seconds."
    )
    head = [
        "arm",
        "forward + backward s",
        "update s",
        "step s",
        "f + b ratio",
        "update ratio",
        "step ratio",
        "probe s",
    ]
    return told + "\n\n" + table(head, rows) + "\n\n" + _draws(entry)


STAGES: tuple[tuple[str, ...], ...] = (("passes",), ("update",), ("passes", "update"))


def _seconds(steps: list[dict[str, Any]], stages: tuple[str, ...]) -> str:
    return f"{statistics.median(_spent(step, stages, 0) for step in steps):.3g}"


def _ratio(rounds: dict[str, Any], arm: str, stages: tuple[str, ...], clock: int) -> str:
    if REFERENCES[0] not in rounds:
        return "-"
    pairs = zip(rounds[arm], rounds[REFERENCES[0]], strict=True)
    return f"{statistics.median(_spent(a, stages, clock) / _spent(b, stages, clock) for a, b in pairs):.3f}"


def _spent(step: dict[str, Any], stages: tuple[str, ...], clock: int) -> float:
    return sum(step[stage][clock] for stage in stages)


def _draws(entry: dict[str, Any]) -> str:
    told = []
    for arm, steps in entry["rounds"].items():
        lowest = [min(step["active"]) for step in steps if step["active"]]
        if lowest:
            told.append(f"`{arm}` {', '.join(map(str, lowest))}")
    if not told:
        return ""
    expected = (entry["layers"] - 2) / 3 if "layers" in entry else None
    middle = f" (two uniform draws from {entry['layers']}: {expected:.1f} on average)" if expected else ""
    return (
        f"Lowest active block in those rounds{middle}: {'; '.join(told)}. The lower it lies, the further "
        "down the backward pass must go, so ratios of few rounds depend on the luck of the draw."
    )
