"""Checks the files of a model folder without loading the model: which one is missing or damaged.

transformers names a damaged file in some cases only, and ignores a few (`generation_config.json` among them).
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from gradwise.stored import read_json
from gradwise.text import one_line

CONFIG, ADAPTER = "config.json", "adapter_config.json"

_SETTINGS = ("generation_config.json",)
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_WEIGHTS = (".safetensors", ".gguf", *_PICKLED)
_BLOCK = 2**16


def damage(folder: Path) -> str | None:
    """The first thing that keeps a model or adapter folder from being loaded whole, as a sentence, or None.
    It checks that configuration, weights and the tokenizer's JSON files are complete and can be read."""
    return next(_damages(folder), None)


def local_folder(name: str) -> Path | None:
    """The folder that a model's name stands for; None if there is none, as for a name on the hub."""
    return Path(name) if os.path.isdir(name) else None  # noqa: PTH112  # `is_dir` raises for over-long names


def stored(folder: Path) -> tuple[int, int]:
    """Number of weights in an undamaged model folder, and their bytes."""
    paths = _weight_files(folder, read_json(folder / CONFIG))
    return sum(len(_weights(path)) for path in paths), sum(path.stat().st_size for path in paths)


def sampled_digest(folder: Path) -> str:
    """SHA-256 over the configuration and 16 evenly spread blocks of each file of weights: it differs for
    another training run, without reading gigabytes."""
    files = sorted(
        path for path in folder.iterdir() if path.name in (CONFIG, ADAPTER) or path.suffix in _WEIGHTS
    )
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_BLOCK, size // 16)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _damages(folder: Path) -> Iterator[str]:
    adapter = os.path.lexists(folder / ADAPTER)
    if adapter and os.path.lexists(folder / CONFIG):
        yield f"{folder} holds a model and an adapter ({CONFIG} and {ADAPTER}); move one of them away."
    yield from _json_damages(folder / (ADAPTER if adapter else CONFIG))
    for name in (*_SETTINGS, *_TOKENIZER):
        if os.path.lexists(folder / name):
            yield from _json_damages(folder / name)
    if adapter:
        yield from _damaged_weights(folder / "adapter_model.safetensors")
    else:
        yield from _weight_damages(folder)


def _weight_damages(folder: Path) -> Iterator[str]:
    index = _index(folder, read_json(folder / CONFIG))
    if index is not None:
        yield from _json_damages(index)
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            yield f"{index} is damaged: its weight_map names no files; copy the model's files again."
    for path in _weight_files(folder, read_json(folder / CONFIG)):
        yield from _damaged_weights(path, index)


def _damaged_weights(path: Path, index: Path | None = None) -> Iterator[str]:
    pickled = [entry.name for entry in sorted(path.parent.iterdir()) if entry.suffix in _PICKLED]
    pickled = [name for name in pickled if name != "training_args.bin"]
    if not os.path.lexists(path) and pickled:
        yield (
            f"{path.parent} holds pickled weights only ({pickled[0]}), which can run code and are not read; "
            "save the model as safetensors."
        )
    if not path.exists():
        source = f", which {index.name} names," if index is not None else ""
        yield f"{path}{source} is missing; copy the model's files again."
    try:
        _weights(path)
    except Exception as error:  # SafetensorError and OSError, and whatever else such a file may cause
        yield f"{path} is damaged ({one_line(error, 200)}); copy the model's files again."


def _weight_files(folder: Path, config: dict[str, Any]) -> list[Path]:
    """The files that transformers reads weights from."""
    index = _index(folder, config)
    if index is not None:
        return [folder / str(name) for name in sorted(set(read_json(index)["weight_map"].values()))]
    return [folder / str(config.get("transformers_weights") or "model.safetensors")]


def _index(folder: Path, config: dict[str, Any]) -> Path | None:
    """The index of a model in several files; None for one in a single file, which comes first."""
    weights_name = str(config.get("transformers_weights") or "")
    name = weights_name or "model.safetensors.index.json"
    if name.endswith(".index.json") and os.path.lexists(folder / name):
        return None if not weights_name and (folder / "model.safetensors").is_file() else folder / name
    return None


def _weights(path: Path) -> list[str]:
    """Names of the weights in a file; raises where its header does not fit its size."""
    with safe_open(path, framework="numpy") as file:
        return list(file.keys())


def _json_damages(path: Path) -> Iterator[str]:
    if not path.exists():
        yield f"{path} is missing; give a folder that `save_pretrained` wrote."
    try:
        # `damage` takes the first sentence only, so nothing from here on runs for a file that is missing.
        contents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        yield f"{path} cannot be read ({error.strerror}); copy the model's files again."
    except (ValueError, RecursionError) as error:
        yield f"{path} is damaged: not valid JSON ({one_line(error, 200)}); copy the model's files again."
    else:
        if not isinstance(contents, dict):
            yield f"{path} is damaged: not a JSON object; copy the model's files again."
