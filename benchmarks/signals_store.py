"""Does a pass that is killed give the same store? `gradwise collect`, SmolLM2-135M over GSM8K, byte by byte.

    python benchmarks/signals_store.py                          # losses of 2,000 problems' first 64 tokens
    python benchmarks/signals_store.py --problems 200 --want loss,embedding,grad_norm,grad --max-length 512

Twice the same command: once left alone, once killed (SIGKILL) each time another third of the blocks is done,
and started again. Then every file of the two stores is compared. Both stores lie under build/signals_store
and are gone on with when the benchmark itself was stopped. Standard error is a terminal, so that the bar
shows.
"""

import argparse
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
from frame import RESULTS, ROOT, ResultFile, load_average
from small_data import instructions

from gradwise.demo import smollm2_recipe
from gradwise.folders import LOCK, MARKER

FOLDER = ROOT / "build" / "signals_store"
KILLS = (1 / 3, 2 / 3)
POLL = 0.2


def recipe(folder: Path, problems: int, batch_tokens: int, max_length: int) -> Path:
    """A recipe over the first problems of GSM8K's training part."""
    folder.mkdir(parents=True, exist_ok=True)
    records = instructions("gsm8k")[:problems]
    (folder / "problems.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made: Any = smollm2_recipe().model
    content = {
        "model": {"name": made.name, "gguf_file": made.gguf_file},
        "data": {
            "train": "problems.jsonl",
            "max_length": max_length,
            "template": "chat",
            "loss_on": "all",
            "allow": {"cut": 1},
        },
        "signals": {"batch_tokens": batch_tokens},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Pass:
    """One `gradwise collect` in a process of its own, its standard error a terminal.

    Args:
        made: the recipe. store: the folder. want: quantities, comma-separated.
    """

    def __init__(self, made: Path, store: Path, want: str) -> None:
        self.store = store
        self.shown = ""
        self._terminal, theirs = pty.openpty()
        os.set_blocking(self._terminal, False)
        # A terminal without a width has no room for a bar.
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        command = [
            sys.executable,
            "-m",
            "gradwise",
            "collect",
            str(made),
            "--out",
            str(store),
            "--want",
            want,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)

    def until(self, blocks: float) -> bool:
        """Wait until this share of the blocks is done, or the pass is; whether it is still running."""
        while self._process.poll() is None:
            self._read()
            if done(self.store) >= blocks:
                return True
            time.sleep(POLL)
        self._read()
        if self._process.returncode:
            raise SystemExit(f"gradwise collect failed:\n{self.shown[-2000:]}")
        return False

    def kill(self) -> None:
        """At once, without a chance to tidy up."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def bar(self) -> str:
        """The bar as it was last shown."""
        drawn = re.findall(r"signals:[^\r\n\x1b]*", self.shown)
        return drawn[-1].strip() if drawn else ""

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while part := os.read(self._terminal, 2**16):
                self.shown = (self.shown + part.decode(errors="replace"))[-(2**16) :]


def done(store: Path) -> float:
    """The share of blocks that are done."""
    path = store / "done"
    flags = path.read_bytes() if path.exists() else b""
    return sum(flags) / len(flags) if flags else 0.0


def killed(made: Path, store: Path, want: str) -> tuple[list[float], str]:
    """A pass killed on its way; shares of the blocks that were done then, and the last bar."""
    shares, bars = [], []
    for share in (*KILLS, 2.0):
        if done(store) >= share:
            continue
        one = Pass(made, store, want)
        if one.until(share):
            one.kill()
            shares.append(done(store))
        bars.append(one.bar())
    return shares, next((bar for bar in reversed(bars) if bar), "")


def differences(first: Path, second: Path) -> list[str]:
    """Files of two stores that are not the same byte by byte; of the manifest, entries but the seconds."""
    names = sorted({path.name for store in (first, second) for path in store.iterdir()} - {LOCK, MARKER})
    differ = []
    for name in names:
        contents = [
            (store / name).read_bytes() if (store / name).exists() else None for store in (first, second)
        ]
        if name == "manifest.json":
            contents = [_without_seconds(content) for content in contents]
        if contents[0] != contents[1]:
            differ.append(name)
    return differ


def _without_seconds(manifest: bytes | None) -> Any:
    if manifest is None:
        return None
    found = json.loads(manifest)
    digests = {name: digest for name, (_, digest) in found.get("digests", {}).items()}
    return found | {"seconds": None, "digests": digests}


def measured(folder: Path, problems: int, want: str, batch_tokens: int, max_length: int) -> dict[str, Any]:
    """Both passes, and what of them differs."""
    made = recipe(folder, problems, batch_tokens, max_length)
    undisturbed = Pass(made, folder / "undisturbed", want)
    undisturbed.until(2.0)
    shares, bar = killed(made, folder / "killed", want)
    manifest = json.loads((folder / "undisturbed" / "manifest.json").read_text())
    tokens = np.load(folder / "undisturbed" / "num_tokens.npy")
    return {
        "problems": problems,
        "want": want,
        "max_length": max_length,
        "label_tokens": int(tokens.sum()),
        "blocks": manifest["request"]["blocks"],
        "seconds": manifest["seconds"],
        "seconds_killed": json.loads((folder / "killed" / "manifest.json").read_text())["seconds"],
        "killed_at": shares,
        "bar": bar,
        "files": sorted(
            path.name for path in (folder / "killed").iterdir() if path.name not in (LOCK, MARKER)
        ),
        "differ": differences(folder / "undisturbed", folder / "killed"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--want", default="loss", help="quantities, comma-separated")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a problem that are kept")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for the stores")
    parser.add_argument("--out", type=Path, default=RESULTS / "signals-store.json", help="the result file")
    options = parser.parse_args()
    result = ResultFile(options.out, "signals", {"part": "store"}, threads=1)
    key = f"store/{options.want}/{options.problems}"
    if key not in result:
        folder = options.folder / "-".join(
            [*options.want.split(","), str(options.problems), str(options.max_length)]
        )
        found = measured(folder, options.problems, options.want, options.batch_tokens, options.max_length)
        result.add(key, found)
    entry = result[key]
    print(f"{key}: differ {entry['differ']}, killed at {entry['killed_at']}, load {load_average()}")
    if entry["differ"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
