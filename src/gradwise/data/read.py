"""From a `Source` to its raw records, wherever they are: a file, a folder, a saved dataset, the hub."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from gradwise.data.files import EXTENSIONS, at_home, count_rows, read_file
from gradwise.data.records import Origin, Record
from gradwise.data.settings import Source
from gradwise.errors import DataError

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Part:
    """One file or one dataset of a source. `name` is its default domain; `count` may be an upper bound."""

    name: str
    records: Callable[[], Iterator[Record]]
    count: Callable[[], int]


def read(source: Source, base: Path | None = None) -> list[Part]:
    """Find what `source` names. Nothing is read yet from text files; their records stream when asked for.

    Args:
        source: what to read; a path that stands nowhere on this machine is tried as the name of a hub
        dataset. base: the folder relative paths are taken from; the current one when not given.

    Raises:
        DataError: nothing there, an unknown extension, a split that does not exist, a hub dataset that cannot
            be fetched, or `split` and `config` given where they mean nothing.
    """
    path = (base or Path()) / at_home(source.path)
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        _refuse(source, "config", "a saved dataset")
        return [_saved(source, path)]
    if path.exists():
        _refuse(source, "config", "a local file or folder")
        _refuse(source, "split", "a local file or folder")
        return _folder(path) if path.is_dir() else [_file(path, path.name)]
    if not _HUB_NAME.fullmatch(source.path) or path.suffix.lower() in EXTENSIONS:
        raise DataError(f"no file or folder {source.path} (looked for {path.absolute()})")
    return [_hub(source)]


def _refuse(source: Source, key: str, what: str) -> None:
    found = getattr(source, key)
    if found is not None:
        raise DataError(f"{source.path} is {what}, for which `{key}: {found}` means nothing; leave it out")


def _file(path: Path, name: str) -> Part:
    return Part(path.stem, lambda: read_file(path, name), lambda: count_rows(path))


def _folder(path: Path) -> list[Part]:
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not found:
        raise DataError(
            f"the folder {path} holds no file ending in {', '.join(EXTENSIONS)}, nor a saved dataset"
        )
    return [_file(p, p.relative_to(path).as_posix()) for p in found]


def _saved(source: Source, path: Path) -> Part:
    try:
        found = datasets.load_from_disk(path)
    except Exception as error:
        raise DataError(f"{source.path} is not a readable saved dataset ({_first_line(error)})") from None
    split = source.split or "train"
    if isinstance(found, datasets.Dataset):
        _refuse(source, "split", "a saved dataset without splits")
        return _dataset(found, path.name)
    if split not in found:
        raise DataError(f"{source.path} has no split {split!r}; it has {', '.join(map(str, found))}")
    return _dataset(found[split], path.name)


def _hub(source: Source) -> Part:
    try:
        found = datasets.load_dataset(source.path, source.config, split=source.split or "train")
    except Exception as error:
        raise DataError(
            f"{source.path} is neither a file or folder here nor a dataset that could be fetched from the "
            f"hub ({_first_line(error)})"
        ) from None
    assert isinstance(found, datasets.Dataset)
    return _dataset(found, source.path)


def _dataset(found: datasets.Dataset, name: str) -> Part:
    def records() -> Iterator[Record]:
        for number, values in enumerate(found, start=1):
            yield Record(Origin(name, number, "row"), dict(values))

    return Part(name, records, lambda: len(found))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
