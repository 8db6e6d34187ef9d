"""Other implementations of projected per-sample gradients, each as documented, on the same model and batch.

    python -m benchmarks.signals.peers --peers-python VENV/bin/python

A loop, vmap, and the packages traker, bergson and dattri, which go in an environment of their own, without
their dependencies. One batch of 16 x 256 tokens of `llama10m` (9.8 M parameters, random weights and tokens);
each sample's mean loss, linear weights of the blocks. Time: the median ratio to an ordinary forward/backward
that ran just before in the same process; projections are set up beforehand. Peak memory above the loaded
model, in a process of its own, set-up included. Errors as on the page on accuracy; for packages that leave
their projections unscaled, after one factor that makes squared lengths right on average (marked *). A dense
Gaussian projection with 1,024 numbers has errors of .031 and .044.
"""

import sys
import tempfile
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.clocks import in_turn
from benchmarks.common.command_line import Script
from benchmarks.common.memory import MEBI, NO_HOLES, peak_over_start
from benchmarks.common.own_process import in_own_process
from benchmarks.common.tables import Claim, Content, Page, number, of_kind, table
from benchmarks.signals.cost import loaded, ratios
from benchmarks.signals.implementations import PEERS, SUBJECT, Peer, loop
from benchmarks.signals.subjects import errors, root_mean_square, train_step
from gradwise.signals.scope import resolve

SEEDS = 5
"""Projections of each peer that takes a seed and runs in seconds; one of the others."""


def memory(name: str) -> dict[str, Any]:
    """Rise of resident memory above the loaded model by set-up and one batch."""
    model, batches = loaded(SUBJECT)
    with peak_over_start() as peak:
        PEERS[name].make(model, 0)(batches[0])
    return {"peak": peak[0]}


def timing(name: str, rounds: int, gram: str) -> dict[str, Any]:
    """Seconds beside ordinary training and errors of the inner products; or the reason why it cannot run."""
    peer = PEERS[name]
    entry: dict[str, Any] = {"peer": name, "note": peer.note, "package": _package(peer.package)}
    if peer.package and entry["package"] is None:
        return {**entry, "problem": f"{peer.package} is not installed"}
    try:
        return entry | _time_and_errors(peer, np.load(gram), rounds)
    except Exception as error:
        return {**entry, "problem": f"{type(error).__name__}: {str(error)[:300]}"}


def _time_and_errors(peer: Peer, gram: NDArray, rounds: int) -> dict[str, Any]:
    model, batches = loaded(SUBJECT)
    batch = batches[0]
    linear = sum(isinstance(module, torch.nn.Linear) for module in model.base_model.modules())
    assert len(resolve(model, "blocks").parameters) == linear, "every package must measure the same weights"
    project = peer.make(model, 0)
    projections: list[NDArray] = []

    def one(_: int) -> None:
        projections[:] = [project(batch).detach().numpy()]

    arms = {"ordinary": lambda _: train_step(model, batch), "peer": one}
    seconds = in_turn(arms, 1 if peer.slow else rounds, warm=not peer.slow)
    if peer.seeded and not peer.slow:
        projections += [peer.make(model, seed)(batch).detach().numpy() for seed in range(1, SEEDS)]
    return {"seconds": seconds, **inner_products(projections, gram)}


def inner_products(projections: list[NDArray], gram: NDArray) -> dict[str, Any]:
    """Errors of projections as they are, and after one common factor that makes squared lengths right on
    average, for packages that do not scale their projections."""
    squares = [np.sum(one.astype(np.float64) ** 2) for one in projections]
    scale = float(np.mean(squares) / np.trace(gram))
    return {
        "numbers": projections[0].shape[1],
        "scale": scale,
        "errors": [errors(one, gram) for one in projections],
        "scaled_errors": [errors(one / np.sqrt(scale), gram) for one in projections],
    }


def exact_gram() -> NDArray:
    """(B, B) inner products of the batch's unprojected gradients."""
    model, batches = loaded(SUBJECT)
    whole = loop(model, 0)(batches[0])
    total = torch.zeros(len(whole), len(whole), dtype=torch.float64)
    for part in whole.split(2**18, dim=1):
        total += part.double() @ part.double().T
    return total.numpy()


def _package(name: str | None) -> str | None:
    try:
        return None if name is None else f"{name} {version(name)}"
    except PackageNotFoundError:
        return None


def page(content: Content) -> Page:
    entries = of_kind(content, "peer")
    ran = {name: entry for name, entry in entries.items() if "problem" not in entry}
    head = ["implementation", "wall-clock", "processor", "peak MiB", "numbers", "pairs", "own", "details"]
    parts = [table(head, [_row(name, entry) for name, entry in ran.items()])]
    if ordinary := content["entries"].get("ordinary/memory"):
        parts.append(f"Ordinary training's peak on the same batch: {ordinary['peak'] / MEBI:,.0f} MiB.")
    if lost := [f"`{name}` ({entry['problem']})" for name, entry in entries.items() if "problem" in entry]:
        parts.append("Did not run: " + "; ".join(lost) + ".")
    names = [name for name in ("gradwise", "vmap", "bergson, p = 6", "dattri, LoGra") if name in ran]
    values = ", ".join(f"{name} {ratios(ran[name]['seconds'], 'peer', 1):.2f}" for name in names)
    return Page(
        command="python -m benchmarks.signals.peers --peers-python VENV/bin/python",
        sections=parts,
        claims=[Claim("Processor time of per-sample gradients over an ordinary forward/backward", values)],
    )


def _row(name: str, entry: dict[str, Any]) -> list[str]:
    unscaled = not 0.5 < entry["scale"] < 2
    errors_of = entry["scaled_errors" if unscaled else "errors"]
    rms = [root_mean_square([one[place] for one in errors_of]) for place in (0, 1)]
    cells = ["exact" if rms[0] < 1e-6 else number(value, 4) + ("*" if unscaled else "") for value in rms]
    note = PEERS[name].note
    return [
        f"`{name}`", *(f"{ratios(entry['seconds'], 'peer', clock):.2f}" for clock in (0, 1)),
        f"{entry['peak'] / MEBI:,.0f}", f"{entry['numbers']:,}", *cells,
        f"{entry['package']}: {note}" if entry["package"] else note,
    ]  # fmt: skip


def _measure(name: str, gram: Path, options: Any) -> dict[str, Any]:
    call = partial(in_own_process, python=options.peers_python)
    entry = call("benchmarks.signals.peers:timing", name, options.rounds, str(gram))
    if "problem" in entry:
        return entry
    return entry | call("benchmarks.signals.peers:memory", name, environment=NO_HOLES)


SCRIPT = Script(__doc__, "signals-peers")
SCRIPT.add_argument("--rounds", type=int, default=8, help="timed rounds (default: 8)")
SCRIPT.add_argument("--peers-python", default=sys.executable, help="interpreter with the peers' packages")


def main() -> None:
    torch.set_num_threads(1)
    options, result = SCRIPT.start()
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
        gram = Path(folder) / "gram.npy"
        np.save(gram, exact_gram())
        for name in PEERS:
            result.once(f"peer/{name}", partial(_measure, name, gram, options))
    ordinary = partial(in_own_process, "benchmarks.signals.cost:memory", SUBJECT, "ordinary")
    result.once("ordinary/memory", partial(ordinary, environment=NO_HOLES))


if __name__ == "__main__":
    main()
