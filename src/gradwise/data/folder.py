"""A folder of data, as people and the hub lay it out: which files are read, by configuration and split."""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import yaml

from gradwise.data.files import EXTENSIONS
from gradwise.data.records import few, reason
from gradwise.data.settings import Source
from gradwise.errors import DataError

_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "__pycache__"}
"""What libraries put beside data."""

_LONGEST_HEAD = 1 << 22
"""Characters of a README's head at most; hundreds of configurations take some hundred thousand."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(-[0-9a-f]{16})?")
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words of file and folder names that say which split a file belongs to, as the hub reads them."""


@dataclass(frozen=True)
class Listing:
    """What of a folder is read, and a sentence on what is not, empty if nothing is left out."""

    files: list[PurePosixPath]
    note: str


def files_of(source: Source, folder: Path) -> Listing:
    """The data files of a folder, relative to it, without hidden files, backups and metadata of libraries. Of
    several splits, `source.split` is read, by default `train`; README.md lists configurations."""
    entries = list(_walk(folder, PurePosixPath(), {_identity(folder)}))
    files = [path for path, is_data in entries if is_data]
    if not files:
        beside = f"; it holds {few([str(path) for path, _ in entries], 5)}" if entries else ""
        raise DataError(
            f"the folder {folder} holds no file ending in {', '.join(EXTENSIONS)}, nor a saved dataset"
            f"{beside}"
        )
    by_split = _by_split(source, folder, files)
    to_read = _files_to_read(source, by_split)
    if not to_read:
        split = f" for the split {source.split or 'train'!r}" if any(by_split.values()) else ""
        raise DataError(
            f"{source.path}: the configuration in its README.md matches none of its files{split} "
            f"({few([str(path) for path in files], 5)}); correct its `data_files`"
        )
    left_out = [str(path) for path, _ in entries if path not in set(to_read)]
    return Listing(to_read, f"not read in {source.path}: {few(left_out, 5)}" if left_out else "")


def name_of(path: PurePosixPath) -> str:
    """A file's name without its extension and the number of its shard: the default domain of its records."""
    shard = _SHARD.fullmatch(path.stem)
    return shard[1] if shard else path.stem


def _walk(folder: Path, within: PurePosixPath, ancestors: set[Any]) -> Iterator[tuple[PurePosixPath, bool]]:
    """Every visible entry below a folder, by its relative path, and whether it is a file of data."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read ({error.strerror})") from None
    for entry in entries:
        path = within / entry.name
        if entry.name.startswith((".", "#")) or entry.name.endswith("~") or entry.name in _METADATA:
            continue
        if not entry.is_dir():
            yield path, entry.is_file() and entry.suffix.lower() in EXTENSIONS
        elif _identity(entry) not in ancestors:  # a link may lead back up
            yield from _walk(entry, path, ancestors | {_identity(entry)})


def _identity(folder: Path) -> tuple[int, int]:
    # Device and inode are the same for every path that leads to a folder.
    status = folder.stat()
    return status.st_dev, status.st_ino


def _by_split(
    source: Source, folder: Path, files: list[PurePosixPath]
) -> dict[str | None, list[PurePosixPath]]:
    patterns = _config(source, folder)
    # A configuration has all splits that it names, or another would be read for one that matches no file.
    by_split: dict[str | None, list[PurePosixPath]] = {split: [] for split in patterns}
    for path in files:
        if patterns:
            splits = [split for split, globs in patterns.items() if _matches(path, globs)]
        else:
            splits = [_split(path)]
        for split in splits:
            by_split.setdefault(split, []).append(path)
    return by_split


def _config(source: Source, folder: Path) -> dict[str, list[str]]:
    """The patterns of each split in the configuration to read; empty if the folder has no configurations."""
    configs = _configs(folder)
    name = source.config or ("default" if "default" in configs else None)
    if name is None and len(configs) > 1:
        raise DataError(
            f"{source.path} has several configurations; give one as `config`: {few(list(configs))}"
        )
    if source.config is not None and source.config not in configs:
        hint = f"its README.md names {few(list(configs))}" if configs else "its README.md names none"
        raise DataError(f"{source.path} has no configuration {source.config!r}; {hint}")
    return configs[name] if name is not None else next(iter(configs.values()), {})


def _matches(path: PurePosixPath, globs: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(str(path), reading) for glob in globs for reading in _readings(glob))


def _readings(glob: str) -> list[str]:
    """A pattern with and without each of its `**/`, which may stand for no folder; the first six at most."""
    # Each `**/` doubles the readings, so that six give 64.
    first, *rest = re.split(r"(?<![^/])\*\*/", glob.removeprefix("./"), maxsplit=6)
    readings = [first]
    for piece in rest:
        readings = [f"{begins}{stars}{piece}" for begins in readings for stars in ("**/", "")]
    return readings


def _files_to_read(source: Source, by_split: dict[str | None, list[PurePosixPath]]) -> list[PurePosixPath]:
    splits = [split for split in by_split if split is not None]
    if source.split is None and len(splits) < 2:
        return sorted({path for paths in by_split.values() for path in paths})
    name = source.split or "train"
    if name not in splits:
        hint = f"it has {few(splits)}" if splits else "its files name none"
        raise DataError(f"{source.path} has no split {name!r}; {hint}")
    return by_split[name]


def _split(path: PurePosixPath) -> str | None:
    """The split that a file's name, or a folder it lies in, says it belongs to."""
    shard = _SHARD.fullmatch(path.stem)
    if shard:
        return _SPLITS.get(shard[1], shard[1])
    for name in (path.stem, *reversed(path.parent.parts)):
        words = re.split(r"[-._ 0-9]+", name.lower())
        for word in words:
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _configs(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Patterns of files by configuration and split, from the head of the README.md that the hub writes."""
    try:
        with (folder / "README.md").open(encoding="utf-8-sig") as file:
            metadata = yaml.load(_head(file), _LOADER)
        configs = metadata.get("configs", []) if isinstance(metadata, dict) else []
        return {
            str(config["config_name"]): _patterns(config["data_files"])
            for config in configs
            if "data_files" in config
        }
    except FileNotFoundError:
        return {}
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        raise DataError(
            f"the configurations in {folder / 'README.md'} cannot be read ({reason(error)}); mend its head"
        ) from None


def _head(readme: TextIO) -> str:
    """The YAML between the two lines `---` with which a README begins; empty where it does not."""
    if readme.readline(_LONGEST_HEAD).rstrip() != "---":
        return ""
    lines, left = [], _LONGEST_HEAD
    while left > 0 and (line := readme.readline(left)):
        if line.rstrip() == "---":
            return "".join(lines)
        lines.append(line)
        left -= len(line)
    raise ValueError(f"it begins with --- and no line --- follows within {_LONGEST_HEAD:,} characters")


def _patterns(files: Any) -> dict[str, list[str]]:
    """`data_files` of a configuration: a pattern, a list of them, or patterns by split."""
    if isinstance(files, dict):
        return {str(split): _listed(globs) for split, globs in files.items()}
    entries = _listed(files)
    if entries and isinstance(entries[0], dict):
        return {str(entry["split"]): _listed(entry["path"]) for entry in entries}
    return {"train": entries}


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]
