"""From a `Source` to its raw records, wherever they are: a file, a folder, a saved dataset, the hub."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import datasets
import pyarrow

from gradwise.data.files import EXTENSIONS, count_rows, read_file
from gradwise.data.folder import files_of, name_of
from gradwise.data.records import Record, reason, whole_characters
from gradwise.data.settings import Source, at_home
from gradwise.data.tables import dataset_rows
from gradwise.errors import DataError

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class SourcePart:
    """One file or one dataset of a source; `name` is the default domain of its records. `count` may be an
    upper bound. `note` says what of the source is not read, in the first part only."""

    name: str
    records: Callable[[], Iterator[Record]]
    count: Callable[[], int]
    note: str = ""


def read(source: Source, base: Path | None = None) -> list[SourcePart]:
    """Find what `source` names; its records stream when they are asked for. A path that does not exist on
    this machine is tried as a hub dataset; relative paths start from `base`, by default the current folder.
    Raises DataError if nothing is there, or if `split` or `config` does not fit it."""
    path = (base or Path()) / at_home(source.path)
    try:
        exists, is_folder = path.exists(), path.is_dir()
        if is_folder and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            _refuse(source, "config", "a saved dataset")
            return [_saved(source, path)]
    except OSError as error:
        raise DataError(f"{source.path} cannot be read ({error.strerror})") from None
    if is_folder:
        return _folder(source, path)
    if exists:
        _refuse(source, "config", "a single file")
        _refuse(source, "split", "a single file")
        return [_file(path, PurePosixPath(path.name))]
    if path.is_symlink():
        raise DataError(f"{source.path} is a link that leads nowhere")
    if not _HUB_NAME.fullmatch(source.path) or path.suffix.lower() in EXTENSIONS:
        raise DataError(f"no file or folder {source.path} (looked for {path.absolute()})")
    return [_hub(source)]


def _refuse(source: Source, key: str, description: str) -> None:
    value = getattr(source, key)
    if value is not None:
        raise DataError(
            f"{source.path} is {description}, for which `{key}: {value}` means nothing; leave it out"
        )


def _folder(source: Source, path: Path) -> list[SourcePart]:
    listing = files_of(source, path)
    notes = [listing.note] + [""] * len(listing.files)
    return [_file(path / file, file, note) for file, note in zip(listing.files, notes, strict=False)]


def _file(path: Path, shown: PurePosixPath, note: str = "") -> SourcePart:
    name = whole_characters(str(shown))
    return SourcePart(
        whole_characters(name_of(shown)),
        lambda: read_file(path, name),
        lambda: count_rows(path),
        whole_characters(note),
    )


def _saved(source: Source, path: Path) -> SourcePart:
    try:
        dataset = datasets.load_from_disk(path)
    except Exception as error:
        raise DataError(f"{source.path} is not a readable saved dataset ({reason(error)})") from None
    if isinstance(dataset, datasets.Dataset):
        _refuse(source, "split", "a saved dataset without splits")
        return _dataset(dataset, source, path.name)
    split = source.split or "train"
    if split not in dataset:
        raise DataError(f"{source.path} has no split {split!r}; it has {', '.join(map(str, dataset))}")
    return _dataset(dataset[split], source, path.name)


def _hub(source: Source) -> SourcePart:
    try:
        dataset = datasets.load_dataset(source.path, source.config, split=source.split or "train")
    except Exception as error:
        raise DataError(
            f"{source.path} is neither a file or folder here nor a dataset that could be fetched from the "
            f"hub ({reason(error)})"
        ) from None
    assert isinstance(dataset, datasets.Dataset)
    return _dataset(dataset, source, source.path)


def _dataset(dataset: datasets.Dataset, source: Source, name: str) -> SourcePart:
    try:
        dataset.data.table.validate(full=True)  # or damaged offsets would crash the process
    except pyarrow.ArrowException as error:
        if "UTF8" not in str(error):  # a flaw of single rows
            raise DataError(f"{source.path} is not a readable saved dataset ({reason(error)})") from None
    name = whole_characters(name)
    return SourcePart(name, lambda: dataset_rows(dataset, name), lambda: len(dataset))
