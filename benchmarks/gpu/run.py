"""Runs everything that needs a GPU, in pieces of at most eight minutes; finished pieces are not run again.

    python -m benchmarks.gpu.run                  # all that is left
    python -m benchmarks.gpu.run --list           # the pieces, and which are done
    python -m benchmarks.gpu.run --minutes 25     # as many as fit

Each piece has a file of its own in `benchmarks/gpu/results`, with machine and versions. A piece that fails or
takes too long has one as well, with the end of its output; `--again` runs those once more. Needs torch 2.11,
transformers 5.17 or later, and the packages in `PACKAGES`. Arms of other packages (badam, torchao) run where
these are installed, and are left otherwise.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
LIMIT = 480
"""Seconds of a piece."""

PACKAGES = (
    "torch", "transformers", "accelerate", "datasets", "safetensors", "matplotlib", "numba", "numpy",
    "pyarrow", "pydantic", "yaml", "scipy", "tqdm", "typer", "peft", "pytest", "pytest_timeout", "hypothesis",
)  # fmt: skip
"""Modules that must be there; they come with `pip install -e '.[lora,dev]'`."""

PEERS = {"badam-package": "badam", "torchao-offload": "torchao"}
"""Arms that are other packages' own, and the module that must be there."""

ARMS = (
    "full", "lora", "lisa", "badam", "grass-keep", "grass-offload", "adamw-offload", "grass-drop",
    "grass-stateless", *PEERS,
)  # fmt: skip
SHARDED_ARMS = ("full", "grass-keep", "grass-offload", "collect")
"""Arms on a model that FSDP2 shards over all GPUs of the machine."""

SHAPES = {"small": (1024,), "7b": (512, 1024, 2048)}
"""Lengths of rows by model: first a small one, which shows whether an arm runs at all."""


def pieces() -> dict[str, list[str]]:
    """The command of each piece: a file of tests, or an arm of a benchmark."""
    commands = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "mark.gpu" in path.read_text(encoding="utf-8"):
            relative = path.relative_to(ROOT)
            name = "-".join(relative.with_suffix("").parts)
            commands[name] = [
                sys.executable,
                "-m",
                "pytest",
                "-v",
                "-m",
                "gpu",
                "--timeout",
                "200",
                str(relative),
            ]
    for model, lengths in SHAPES.items():
        for length in lengths:
            for arm in ARMS:
                command = [sys.executable, "-m", "benchmarks.gpu.training", model, arm, str(length)]
                commands[f"training-{model}-{length}-{arm}"] = command
    for model in SHAPES:
        for arm in SHARDED_ARMS:
            commands[f"sharded-{model}-1024-{arm}"] = [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "gpu",
                "-m", "benchmarks.gpu.sharded", model, arm, "1024",
            ]  # fmt: skip
    return commands


def run(name: str, command: list[str]) -> dict[str, Any]:
    """Run a piece; its last line of output may be a JSON object with what it measured."""
    start, variables = time.time(), {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": _path()}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
        outcome = "done" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        # With the workers of its loaders, which would keep the memory of the device.
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        outcome = "took too long"
    return {
        "piece": name,
        "outcome": outcome,
        "seconds": round(time.time() - start, 1),
        "machine": machine(),
        "measured": _measured(output),
        "output": "" if outcome == "done" and not name.startswith("tests") else output[-4000:],
    }


def machine() -> dict[str, Any]:
    """Device and versions."""
    import torch
    import transformers

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory": torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }


def _measured(output: str) -> Any:
    last = output.strip().splitlines()[-1:] or [""]
    try:
        return json.loads(last[0])
    except ValueError:
        return None


def _path() -> str:
    return os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])


def _finished(name: str, again: bool) -> bool:
    path = RESULTS / f"{name}.json"
    return path.exists() and not (again and json.loads(path.read_text())["outcome"] != "done")


def _package_lacking(name: str) -> str | None:
    """The other package that a piece measures, where it is not installed."""
    wanted = next((package for arm, package in PEERS.items() if name.endswith(f"-{arm}")), None)
    return wanted if wanted is not None and importlib.util.find_spec(wanted) is None else None


def obstacle() -> str | None:
    """Why nothing can be run here, in one sentence."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        return f"Packages are missing: {', '.join(missing)}; run: pip install -e '.[lora,dev]'."
    import torch

    if not torch.cuda.is_available():
        return "There is no CUDA device here, so nothing was run."
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print the pieces")
    parser.add_argument("--again", action="store_true", help="also run pieces that failed before")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no piece that may end later"
    )
    options = parser.parse_args()
    commands = pieces()
    left = {name: command for name, command in commands.items() if not _finished(name, options.again)}
    lacking = {name: package for name in left if (package := _package_lacking(name)) is not None}
    if options.list:
        for name in commands:
            needs = f" (needs {lacking[name]})" if name in lacking else ""
            print(f"{'left' if name in left else 'done'}  {name}{needs}")
        return
    if (sentence := obstacle()) is not None:
        print(sentence)
        return
    RESULTS.mkdir(exist_ok=True)
    start = time.time()
    for name, command in left.items():
        if name in lacking:
            print(f"{name} needs the package {lacking[name]}, which is not installed.")
            continue
        if time.time() - start + LIMIT > options.minutes * 60:
            print("The rest needs another run of this command.")
            return
        result = run(name, command)
        partial = RESULTS / f".{name}.json"
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(RESULTS / f"{name}.json")
        print(
            f"{time.strftime('%H:%M:%S')} {name}: {result['outcome']} ({result['seconds']:.0f} s)", flush=True
        )


if __name__ == "__main__":
    main()
