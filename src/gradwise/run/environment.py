"""What a run was made with: versions, machine, code, data."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gradwise.ranks import world_size
from gradwise.text import masked

PACKAGES = (
    "gradwise",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "trl",
    "numpy",
    "tokenizers",
)


def environment(*, data: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Plain values for `environment.json`; `data` and `model` describe the training data and the model."""
    return {
        "versions": versions(),
        "machine": {
            "platform": platform.platform(),
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "ranks": world_size(),
        },
        # A `--set train.hub_token=...` must not stay in a file that people share.
        "command": [masked(argument) for argument in sys.argv],
        "git_revision": _git_revision(),
        "model": model,
        "data": data,
    }


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: allocated on the accelerator, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    # macOS counts in bytes, Linux in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect what a run computes."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def _git_revision() -> str | None:
    """Revision of the working directory's repository, which is where a user keeps recipes."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            cwd=Path.cwd(),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
