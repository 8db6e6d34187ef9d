"""The page of a layer benchmark: learning rates, held-out loss, memory by part, step times."""

import statistics
from typing import Any

from benchmarks.common import tables
from benchmarks.common.memory import MEBI
from benchmarks.common.tables import Claim, Content, Page, Runs

REFERENCES = ("full", "lora", "lisa")
"""The other arms are compared with each of these; the first is the reference of ratios."""

MODELS = {"smollm2": "SmolLM2-135M-Instruct", "stories": "stories260K"}


def page(content: Content) -> Page:
    one = content["settings"]
    model, runs = MODELS[one["name"]], tables.by_arm(content, "quality")
    short = {entry["arm"]: {0: entry} for entry in tables.of_kind(content, "memory").values()}
    rates = (
        f"**Learning rates**, chosen on seed {one['tuning_seed']} after {one['tuning_steps']} steps by the "
        f"loss on {one['tuning']} reserved training records:"
    )
    part = "" if runs else ", memory of short runs"
    return Page(
        title=f"Layer policies: LISA and GRASS on {model}{part}",
        command=f"python -m benchmarks.layers.run --model {one['name']}"
        + ("" if runs else " --parts memory"),
        sections=[
            _setting(one),
            *tables.learning_rates(content, rates),
            *_quality(content, runs),
            *_memory(runs, short),
            *_timing(content),
        ],
        claims=[
            *_quality_claims(model, runs),
            *_memory_claims(model, runs or short, "" if runs else RETURNING),
        ],
    )


RETURNING = ", with an allocator that returns memory at once"
"""What distinguishes the claim on short runs."""


def _setting(one: dict[str, Any]) -> str:
    largest = f" of at most {one['largest']} characters" if one["largest"] else ""
    lora = ", ".join(f"{name} {value}" for name, value in one["lora"].items())
    return (
        f"{MODELS[one['name']]}, records of `{one['train']}`{largest}; {one['steps']} optimizer steps of "
        f"{one['batch_size']} records (micro-batch {one['micro_batch']}, at most {one['max_length']} "
        "tokens), AdamW, float32, cosine schedule with 10 % warm-up, gradients clipped at norm 1. Layer "
        f"policies: 2 active blocks, drawn again every {one['period']} steps; embeddings, head and final "
        f"norm frozen except in `lisa-embeddings`; GRASS probes once. LoRA on all linear layers: {lora}. "
        f"Held-out loss on the first {one['held_out']} such records of `{one['test']}`, in nats per label "
        "token, every token with the same weight."
    )


def _quality(content: Content, runs: Runs) -> list[str]:
    if not runs:
        return []
    untrained = content["entries"]["untrained/held_out"]
    text = (
        f"**Held-out loss at equal optimizer steps.** Before training: {untrained['loss']:.4f} "
        f"({untrained['held_out_tokens']:,} label tokens). Seconds are those of the training loop with "
        "everything charged (GRASS's probe, drawing, measuring), without loading and evaluation, which are "
        "the same for all arms. The machine was shared, so processor seconds are more reliable than "
        "wall-clock seconds."
    )
    losses, rows = tables.losses_of(runs), []
    for arm, by_seed in runs.items():
        loss, sd = tables.mean_sd(losses[arm])
        entries = by_seed.values()
        rates = dict.fromkeys(
            f"{e['learning_rate']:g}" + ("" if e["tuned"] else " (not tuned)") for e in entries
        )
        seconds = [f"{tables.mean(entries, f'{name}seconds'):.1f}" for name in ("", "probe_", "processor_")]
        rows.append(
            [f"`{arm}`", "/".join(rates), str(len(entries)), f"{loss:.4f}", tables.number(sd, 4), *seconds]
        )
    head = ["arm", "learning rate", "seeds", "held-out loss", "sd", "wall-clock s", "probe s", "processor s"]
    return [text, tables.table(head, rows), *tables.comparisons(losses, REFERENCES)]


def _quality_claims(model: str, runs: Runs) -> list[Claim]:
    claims = ((f"{model}, equal steps: GRASS against full training", "grass", "full"),)
    return tables.compared_claims(tables.losses_of(runs), REFERENCES, claims)


def _memory(runs: Runs, short: Runs) -> list[str]:
    parts = [MEMORY] if runs or short else []
    if runs:
        parts += ["The runs above, mean over the seeds, with glibc's default allocator:", _memory_table(runs)]
    if short:
        text = (
            "Short runs of two steps, with an allocator that returns large blocks at once "
            "(MALLOC_MMAP_THRESHOLD_), so that the rest has no holes:"
        )
        parts += [text, _memory_table(short)]
    return parts


MEMORY = (
    "**Memory by part**, MiB, each part at its own maximum. For gradients and optimizer state, the ratio of "
    "measured to computed bytes follows (4 bytes per parameter for the gradient, 8 for AdamW's moments and 4 "
    "per tensor for its step count; only active layers, or all layers visited so far if their state is kept; "
    "LoRA: the adapter). Activations are what autograd saves for the backward pass, without parameters; "
    "`probe` is GRASS's measurement of all layers. The peak is resident memory above that just after "
    "loading. The rest is the peak minus gradients, state and the larger of the two activations: workspaces, "
    "logits, gradients of activations, the allocator. It is negative if the parts did not peak together."
)


def _memory_table(runs: Runs) -> str:
    peaks = {arm: _mebi(by_seed, "peak_over_loaded") for arm, by_seed in runs.items()}
    rows = [_memory_row(arm, by_seed, peaks[arm], peaks.get(REFERENCES[0])) for arm, by_seed in runs.items()]
    head = ["arm", "weights", "gradients", "ratio", "state", "ratio", "activations", "probe", "rest", "peak"]
    return tables.table([*head, "peak / full"], rows)


def _memory_row(arm: str, by_seed: dict[int, Any], peak: float, full: float | None) -> list[str]:
    names = ("weights", "gradients", "state", "activations", "probe_activations")
    part = {name: _mebi(by_seed, name) for name in names}
    rest = peak - part["gradients"] - part["state"] - max(part["activations"], part["probe_activations"])
    probe = f"{part['probe_activations']:.1f}" if part["probe_activations"] else "-"
    ratio = f"{peak / full:.2f}" if full else "-"
    return [
        f"`{arm}`", f"{part['weights']:.1f}", f"{part['gradients']:.1f}", _ratio(by_seed, "gradients"),
        f"{part['state']:.1f}", _ratio(by_seed, "state"), f"{part['activations']:.1f}", probe, f"{rest:.1f}",
        f"{peak:.1f}", ratio,
    ]  # fmt: skip


def _mebi(by_seed: dict[int, dict[str, Any]], name: str) -> float:
    return tables.mean([run["memory"] for run in by_seed.values()], name) / MEBI


def _ratio(by_seed: dict[int, dict[str, Any]], name: str) -> str:
    ratios = [run["memory"][name] / run["arithmetic"][name] for run in by_seed.values()]
    return f"{statistics.fmean(ratios):.4f}"


def _memory_claims(model: str, runs: Runs, part: str) -> list[Claim]:
    if not {"full", "grass"} <= set(runs):
        return []
    ratio = _mebi(runs["grass"], "peak_over_loaded") / _mebi(runs["full"], "peak_over_loaded")
    text = f"{model}: GRASS's peak memory above the loaded model, over that of full training{part}"
    return [Claim(text, f"{ratio:.2f}", str(len(runs["grass"])))]


STAGES: tuple[tuple[str, ...], ...] = (("passes",), ("update",), ("passes", "update"))


def _timing(content: Content) -> list[str]:
    entry = content["entries"].get("timing/steps")
    if entry is None:
        return []
    rounds, padded, rows = entry["rounds"], entry["padded_tokens"], []
    for arm, steps in rounds.items():
        probe = entry["probes"].get(arm)
        seconds = [f"{statistics.median(_spent(step, stages, 0) for step in steps):.3g}" for stages in STAGES]
        ratios = [_time_ratio(rounds, arm, stages) for stages in STAGES]
        rows.append([f"`{arm}`", *seconds, *ratios, f"{probe[1]:.2f}" if probe else "-"])
    text = (
        f"**Step time**, {tables.plural(entry['threads'], 'thread')}, all arms in turn on the same "
        f"{len(padded)} micro-batches ({min(padded)} to {max(padded)} tokens with padding), a new draw in "
        "every round. Median wall-clock seconds, then the median of the ratios of processor time to full "
        "training in the same round (the machine was shared). The probe is one forward/backward, in "
        "processor seconds."
    )
    head = [
        "arm",
        "forward/backward s",
        "update s",
        "step s",
        "f/b ratio",
        "update ratio",
        "step ratio",
        "probe s",
    ]
    return [text, tables.table(head, rows), *_draws(entry)]


def _time_ratio(rounds: dict[str, Any], arm: str, stages: tuple[str, ...]) -> str:
    if REFERENCES[0] not in rounds:
        return "-"
    pairs = zip(rounds[arm], rounds[REFERENCES[0]], strict=True)
    return f"{statistics.median(_spent(a, stages, 1) / _spent(b, stages, 1) for a, b in pairs):.3f}"


def _spent(step: dict[str, Any], stages: tuple[str, ...], clock: int) -> float:
    return sum(step[stage][clock] for stage in stages)


def _draws(entry: dict[str, Any]) -> list[str]:
    lowest = {
        arm: ", ".join(str(min(step["active"])) for step in steps if step["active"])
        for arm, steps in entry["rounds"].items()
    }
    if not any(lowest.values()):
        return []
    draws = "; ".join(f"`{arm}` {blocks}" for arm, blocks in lowest.items() if blocks)
    return [
        f"Lowest active block in those rounds: {draws}. The lower it lies, the further the backward pass "
        "must go, so ratios over few rounds depend on the draw."
    ]
