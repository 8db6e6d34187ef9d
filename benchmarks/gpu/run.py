"""Runs everything that needs a GPU, in pieces of at most eight minutes; finished pieces are not run again.

    python -m benchmarks.gpu.run                  # all that is left
    python -m benchmarks.gpu.run --list           # the pieces, and which are done
    python -m benchmarks.gpu.run --minutes 25     # as many as fit
    python -m benchmarks.gpu.run --only 'training-7b-1024-*' --limit 150 --minutes 9.5 --lines out/gpu.jsonl
    python -m benchmarks.gpu.run --take out/gpu.jsonl    # on the machine that keeps the results

Each piece has a file of its own in `benchmarks/gpu/results`, with machine and versions. A piece that fails or
takes too long has one as well, with the end of its output; `--again` runs those once more. Where the machine
keeps no files, `--lines` collects results in a single one, and `--take` makes files of these.
`python -m benchmarks.results` then writes docs/results/gpu.md, which says of each bar whether it is met.

Needs torch 2.11, transformers 5.17 or later, and the packages in `PACKAGES`; gradwise itself need not be
installed. transformers 5.17 refuses huggingface_hub 2 as it is imported: it needs an earlier one, with httpx.
Where nothing can be installed, unpack the wheels of what is missing into a folder, and name that in
PYTHONPATH. Arms of other packages (badam, torchao) run where these are installed, and are left otherwise.
"""

import argparse
import fnmatch
import importlib.metadata
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

RECORDED = ("accelerate", "peft", "datasets", "numpy", "huggingface_hub", *PEERS.values())
"""Packages whose versions a result holds, beside torch and transformers."""

ARMS = (
    "full", "lora", "lisa", "badam", "grass-keep", "grass-offload", "adamw-offload", "grass-drop",
    "grass-stateless", *PEERS,
)  # fmt: skip
SHARDED_ARMS = ("full", "grass-keep", "grass-offload", "collect")
"""Arms on a model that FSDP2 shards over all GPUs of the machine."""

SHAPES = {"small": (1024,), "7b": (1024, 512, 2048)}
"""Lengths of rows by model: first a small one, which shows whether an arm runs at all, then the length that
GRASS's memory is judged at."""


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


def run(name: str, command: list[str], limit: float = LIMIT) -> dict[str, Any]:
    """Run a piece; the last line of its output that is a JSON object is what it measured."""
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
        output, _ = process.communicate(timeout=limit)
        outcome = "done" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        # With the workers of its loaders, which would keep the memory of the device.
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        outcome = "took too long"
    measured = _measured(output)
    return {
        "piece": name,
        "outcome": outcome,
        "seconds": round(time.time() - start, 1),
        "machine": machine(),
        "measured": measured,
        "output": "" if outcome == "done" and measured is not None else output[-4000:],
    }


def machine() -> dict[str, Any]:
    """Device, versions, and the revision of this source."""
    import torch
    import transformers

    return {
        "revision": _revision(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory": torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        **{name: _version(name) for name in RECORDED},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git revision, with a plus sign if files were changed since; None outside of a checkout."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _measured(output: str) -> Any:
    # Libraries may warn as the process ends.
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def _path() -> str:
    return os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])


def _finished(name: str, again: bool) -> bool:
    path = RESULTS / f"{name}.json"
    return path.exists() and not (again and json.loads(path.read_text())["outcome"] != "done")


def _keep(result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['piece']}.json"
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)


def _package_lacking(name: str) -> str | None:
    """The other package that a piece measures, where it is not installed."""
    wanted = next((package for arm, package in PEERS.items() if name.endswith(f"-{arm}")), None)
    return wanted if wanted is not None and importlib.util.find_spec(wanted) is None else None


def obstacle() -> str | None:
    """Why nothing can be run here, in one sentence."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        return f"Packages are missing: {', '.join(missing)}; run: pip install -e '.[lora,dev]'."
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:  # it checks the versions of what it needs
        reason = " ".join(str(error).split()).rstrip(".")
        return f"transformers cannot be imported: {reason} (5.17 needs huggingface_hub below 2, and httpx)."
    if not torch.cuda.is_available():
        return "There is no CUDA device here, so nothing was run."
    return None


SCRIPT = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
SCRIPT.add_argument("--list", action="store_true", help="print the pieces")
SCRIPT.add_argument("--again", action="store_true", help="also run pieces that failed before")
SCRIPT.add_argument("--minutes", type=float, default=float("inf"), help="begin no piece that may end later")
SCRIPT.add_argument("--only", nargs="+", default=["*"], help="patterns of the pieces to run, in order")
SCRIPT.add_argument("--limit", type=float, default=LIMIT, help="seconds that a piece may take")
SCRIPT.add_argument("--lines", type=Path, help="collect the results in this file, a line each")
SCRIPT.add_argument("--take", type=Path, help="make files of the results collected in this one, and end")


def main() -> None:
    options = SCRIPT.parse_args()
    if options.take is not None:
        for line in options.take.read_text().splitlines():
            _keep(json.loads(line))
        return
    commands = pieces()
    chosen = [name for pattern in options.only for name in commands if fnmatch.fnmatchcase(name, pattern)]
    commands = {name: commands[name] for name in chosen}
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
    start = time.time()
    for name, command in left.items():
        if name in lacking:
            print(f"{name} needs the package {lacking[name]}, which is not installed.")
            continue
        if time.time() - start + options.limit > options.minutes * 60:
            print("The rest needs another run of this command.")
            return
        result = run(name, command, options.limit)
        _keep(result)
        if options.lines is not None:
            options.lines.parent.mkdir(parents=True, exist_ok=True)
            with options.lines.open("a") as file:
                file.write(json.dumps(result) + "\n")
        print(
            f"{time.strftime('%H:%M:%S')} {name}: {result['outcome']} ({result['seconds']:.0f} s)", flush=True
        )


if __name__ == "__main__":
    main()
