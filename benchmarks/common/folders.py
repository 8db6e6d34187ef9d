"""Where benchmarks read and write, and folders that are complete or absent."""

import shutil
from collections.abc import Callable
from pathlib import Path

from gradwise.atomic import sync_files

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
"""Models, pools and runs that benchmarks make; not part of the repository."""
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data"
"""Real data, beside the repository."""


def build_folder(folder: Path, fill: Callable[[Path], object]) -> Path:
    """The folder, complete. If it is absent, `fill` writes a temporary one, which is then renamed."""
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        sync_files(partial)
        partial.rename(folder)
    return folder
