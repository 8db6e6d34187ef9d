"""Is a store the same after a scoring run was killed and resumed? `gradwise collect`, byte by byte.

    python -m benchmarks.signals.store                          # losses of 2,000 problems' first 64 tokens
    python -m benchmarks.signals.store --problems 200 --want loss,embedding,grad_norm,grad --max-length 512

SmolLM2-135M over GSM8K, the same command twice: once undisturbed, and once killed (SIGKILL) after each third
of the blocks and started again. All files of the two stores are compared, except for the seconds in the
manifest. Seconds are wall-clock on a shared machine, without the work that kills lost and without loading the
model again.

Both stores are in build/signals_store, and an interrupted benchmark resumes them. Standard error is a
terminal, so that the bar shows.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.common.command_line import Script
from benchmarks.common.folders import BUILD
from benchmarks.common.records import instructions, write_jsonl
from benchmarks.common.result_file import load_average
from benchmarks.common.smollm2 import packaged
from benchmarks.common.tables import Claim, Content, Page, of_kind, table
from gradwise.folders import LOCK, MARKER

FOLDER = BUILD / "signals_store"
KILLS = (1 / 3, 2 / 3)
POLL = 0.2


def recipe(folder: Path, problems: int, batch_tokens: int, max_length: int) -> Path:
    """A recipe over the first problems of GSM8K's training part."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "problems.jsonl", instructions("gsm8k")[:problems])
    content = {
        "model": {"name": packaged().name, "gguf_file": packaged().gguf_file},
        "data": {
            "train": "problems.jsonl", "max_length": max_length, "template": "chat", "loss_on": "all",
            "allow": {"cut": 1},
        },
        "signals": {"batch_tokens": batch_tokens},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Collect:
    """One `gradwise collect` in a process of its own, whose standard error is a terminal.

    Args:
        recipe: its path. store: the folder. want: quantities, comma-separated.
    """

    def __init__(self, recipe: Path, store: Path, want: str) -> None:
        self.store = store
        self.output = ""
        self._terminal, theirs = pty.openpty()
        os.set_blocking(self._terminal, False)
        # A terminal without a width has no room for a bar.
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        options = [str(recipe), "--out", str(store), "--want", want]
        command = [sys.executable, "-m", "gradwise", "collect", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)

    def wait_for(self, blocks: float) -> bool:
        """Wait for this share of the blocks or for the end; whether the process is still running."""
        while self._process.poll() is None:
            self._read()
            if done(self.store) >= blocks:
                return True
            time.sleep(POLL)
        self._read()
        if self._process.returncode:
            raise SystemExit(f"gradwise collect failed:\n{self.output[-2000:]}")
        return False

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def bar(self) -> str:
        """The last bar."""
        drawn = re.findall(r"signals:[^\r\n\x1b]*", self.output)
        return drawn[-1].strip() if drawn else ""

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while part := os.read(self._terminal, 2**16):
                self.output = (self.output + part.decode(errors="replace"))[-(2**16) :]


def done(store: Path) -> float:
    """The share of blocks that are done."""
    path = store / "done"
    flags = path.read_bytes() if path.exists() else b""
    return sum(flags) / len(flags) if flags else 0.0


def killed(recipe_path: Path, store: Path, want: str) -> tuple[list[float], str]:
    """Score with kills in between. Returns the shares of blocks done at the kills, and the last bar."""
    shares, bars = [], []
    for share in (*KILLS, 2.0):
        if done(store) >= share:
            continue
        process = Collect(recipe_path, store, want)
        if process.wait_for(share):
            process.kill()
            shares.append(done(store))
        bars.append(process.bar())
    return shares, next((bar for bar in reversed(bars) if bar), "")


def differences(first: Path, second: Path) -> list[str]:
    """Files that are not equal byte by byte; in the manifest, the seconds may differ."""
    names = sorted({path.name for store in (first, second) for path in store.iterdir()} - {LOCK, MARKER})
    return [name for name in names if _content(first / name) != _content(second / name)]


def _content(path: Path) -> Any:
    if not path.exists():
        return None
    if path.name != "manifest.json":
        return path.read_bytes()
    manifest = json.loads(path.read_bytes())
    digests = {name: digest for name, (_, digest) in manifest.get("digests", {}).items()}
    return manifest | {"seconds": None, "digests": digests}


def measure(folder: Path, problems: int, want: str, batch_tokens: int, max_length: int) -> dict[str, Any]:
    """Both scoring runs, and the files that differ."""
    path = recipe(folder, problems, batch_tokens, max_length)
    Collect(path, folder / "undisturbed", want).wait_for(2.0)
    shares, bar = killed(path, folder / "killed", want)
    manifest = json.loads((folder / "undisturbed" / "manifest.json").read_text())
    tokens = np.load(folder / "undisturbed" / "num_tokens.npy")
    return {
        "problems": problems, "want": want, "max_length": max_length, "label_tokens": int(tokens.sum()),
        "blocks": manifest["request"]["blocks"], "seconds": manifest["seconds"],
        "seconds_killed": json.loads((folder / "killed" / "manifest.json").read_text())["seconds"],
        "killed_at": shares, "bar": bar,
        "files": sorted({path.name for path in (folder / "killed").iterdir()} - {LOCK, MARKER}),
        "differ": differences(folder / "undisturbed", folder / "killed"),
    }  # fmt: skip


def page(content: Content) -> Page:
    entries = list(of_kind(content, "store").values())
    rows = [
        [
            f"`{entry['want']}`", f"{entry['problems']:,}", f"{entry['max_length']:,}",
            f"{entry['blocks']:,}",
            ", ".join(f"{share:.0%}" for share in entry["killed_at"]), f"{entry['seconds']:,.0f}",
            f"{entry['seconds_killed']:,.0f}", ", ".join(entry["differ"]) or "none",
        ]
        for entry in entries
    ]  # fmt: skip
    head = [
        "quantities",
        "problems",
        "most tokens",
        "blocks",
        "killed at",
        "seconds undisturbed",
        "seconds killed",
    ]
    bars = [f"The last bar: `{entry['bar']}`" for entry in entries if entry["bar"]][-1:]
    different = sum(len(entry["differ"]) for entry in entries)
    kills = sum(len(entry["killed_at"]) for entry in entries)
    return Page(
        sections=[table([*head, "files that differ"], rows), *bars],
        claims=[Claim(f"Files of a store that differ after {kills} kills", str(different))],
    )


SCRIPT = Script(__doc__, "signals-store")
SCRIPT.add_argument("--problems", type=int, default=2000)
SCRIPT.add_argument("--want", default="loss", help="quantities, comma-separated")
SCRIPT.add_argument("--batch-tokens", type=int, default=2048)
SCRIPT.add_argument("--max-length", type=int, default=64, help="tokens of a problem")
SCRIPT.add_argument("--folder", type=Path, default=FOLDER, help="folder of the stores")


def main() -> None:
    options, result = SCRIPT.start()
    key = f"store/{options.want}/{options.problems}"
    if key not in result:
        parts = [*options.want.split(","), str(options.problems), str(options.max_length)]
        arguments = (options.problems, options.want, options.batch_tokens, options.max_length)
        result.add(key, measure(options.folder / "-".join(parts), *arguments))
    entry = result[key]
    print(f"{key}: differ {entry['differ']}, killed at {entry['killed_at']}, load {load_average()}")
    if entry["differ"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
