"""From the sources that a recipe names to a `Pool` of tokenised samples.

Records stream through in batches into an Arrow file of our own, which `datasets` then maps into memory, so
data may be larger than memory. `Dataset.from_generator` would do the same behind a cache keyed by the
generator's arguments: a file that changed under the same name would come back as it was, and without the
counts. The Arrow file lies in the system's temporary folder (TMPDIR moves it) until the process ends; a run
that is killed leaves nothing behind in a cache that nobody clears.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import datasets
from transformers import PreTrainedTokenizerBase

from gradwise.atomic import not_written, writing
from gradwise.console import Progress, on_terminal
from gradwise.data.chat import template_text
from gradwise.data.formats import CHATS, Format, Sample, columns_of, detect
from gradwise.data.pool import Pool
from gradwise.data.read import SourcePart, read
from gradwise.data.records import Record, UnreadableError, few
from gradwise.data.settings import Data, FormatName, Source, Sources
from gradwise.data.tokenise import Tokeniser
from gradwise.data.writer import Row, SampleWriter, setting
from gradwise.errors import DataError
from gradwise.temporary import TemporaryFolder

BATCH = 1000

PartName = Literal["train", "validation", "target", "anneal"]


def load(
    settings: Data,
    part: PartName,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sources: Sources = None,
    progress: bool = True,
    base: Path | None = None,
) -> Pool:
    """Read, tokenise and check one part of the data; `sources` are those of `anneal`, which `settings` does
    not name. Relative paths start from `base`, by default the current folder. Raises DataError if a source
    cannot be read, too many records are flawed, or too few are left."""
    part_sources = sources if part == "anneal" else getattr(settings, part)
    source_parts = [(source, item) for source in _several(part_sources, part) for item in read(source, base)]
    tokenise = Tokeniser(
        tokenizer,
        settings.max_length,
        settings.loss_on,
        settings.template,
        template_text(settings.chat_template, base),
    )
    total = sum(item.count() for _, item in source_parts) if progress and on_terminal() else None
    path = _new_file()
    with (
        Progress(f"{part} data", total, "records", shown=progress) as bar,
        _Written(path) as file,
    ):
        writer = SampleWriter(settings, part, file)
        unread: dict[str, list[str]] = {}
        formats: dict[str, set[FormatName]] = {}
        for source, item in source_parts:
            for row in _rows(source, item, tokenise, unread, formats):
                writer.write(row)
                bar.update()
        files = [item.note for _, item in source_parts if item.note]
        notes = [*_columns(unread), *_mixtures(formats, settings.template), *tokenise.chat.notes]
        report, fingerprint = writer.close([*files, *notes])
    return Pool(datasets.Dataset.from_file(str(path)), report, fingerprint, writer.records)


def _several(one_or_several: Sources, part: PartName) -> list[Source]:
    sources = [one_or_several] if isinstance(one_or_several, Source) else one_or_several
    if not sources:
        raise DataError(f"{setting(part)} names no source; give a file, a folder or a hub dataset there")
    return sources


class _Written(io.FileIO):
    """A file in the temporary folder; the error for a full disk names that folder."""

    def __init__(self, path: Path) -> None:
        with writing(path):
            super().__init__(path, "wb")
        self._path = path

    def write(self, content: Any) -> int:
        try:
            left = memoryview(content).cast("B")
            size = len(left)
            while left:
                # A raw file may take a part of what it is given, and says so only by a number.
                left = left[super().write(left) or 0 :]
            return size
        except OSError as error:
            raise not_written(self._path, error, "set TMPDIR to another folder if need be") from error


@cache
def _folder() -> TemporaryFolder:
    """The folder of all pools' files, kept until the process ends: loader workers may reopen the files."""
    return TemporaryFolder("data")


def _new_file() -> Path:
    number, path = tempfile.mkstemp(dir=_folder().path, suffix=".arrow")
    os.close(number)
    return Path(path)


def _columns(unread: dict[str, list[str]]) -> list[str]:
    """Sentences on the columns that are not read; files that have the same ones share a sentence."""
    return [f"columns not read in {few(files, 3)}: {columns}" for columns, files in unread.items()]


def _mixtures(formats: dict[str, set[FormatName]], template: str) -> list[str]:
    """Sentences on files that mix formats, and on prompts that are written in several ways."""
    notes = [
        f"{name} mixes formats: {', '.join(sorted(file_formats))}"
        for name, file_formats in formats.items()
        if len(file_formats) > 1
    ]
    all_formats = set[FormatName]().union(*formats.values())
    ways = (
        sorted(all_formats - {"text", *CHATS} if template == "plain" else ())
        + sorted(all_formats & CHATS)[:1]
    )
    if len(ways) > 1:
        notes.append(
            f"Warning: prompts are written in {len(ways)} ways, those of {', '.join(ways)}; data.template: "
            "chat writes all of them with the chat template"
        )
    return notes


def _rows(
    source: Source,
    part: SourcePart,
    tokenise: Tokeniser,
    unread: dict[str, list[str]],
    formats: dict[str, set[FormatName]],
) -> Iterator[Row]:
    """One row for each record of a file or dataset. Adds the part's name to `unread` under the columns that
    are not read, and the formats of its records to `formats` under its name."""
    records = part.records()
    batch = list(islice(records, BATCH))
    if not batch:
        raise DataError(f"{part.name} ({source.path}) holds no records")
    form = None
    while batch:
        if form is None and (columns := columns_of(batch)):
            # By the first batch that has a readable record: a file may begin with blank or broken lines.
            form = detect(source, columns, next(each.values for each in batch if each.values))
            for record_format in {
                each.name: each for each in (form.of(record.values) for record in batch)
            }.values():
                columns = record_format.unread(columns)
            if columns:
                unread.setdefault(few(columns), []).append(part.name)
        forms = [form.of(record.values) if form is not None else None for record in batch]
        formats.setdefault(part.name, set()).update(each.name for each in forms if each is not None)
        yield from _batch(batch, forms, part.name, tokenise)
        batch = list(islice(records, BATCH))


def _batch(batch: list[Record], forms: list[Format | None], name: str, tokenise: Tokeniser) -> Iterator[Row]:
    understood = [_understood(record, form, name) for record, form in zip(batch, forms, strict=True)]
    tokens = iter(tokenise([sample for _, sample in understood if sample is not None]))
    for row, sample in understood:
        yield row if sample is None else row._replace(outcome=next(tokens))


def _understood(record: Record, form: Format | None, name: str) -> tuple[Row, Sample | None]:
    """A record's row, and the sample whose tokens it still lacks; no sample if it is blank or unreadable."""
    if record.problem or form is None:
        return Row(record.origin, UnreadableError(record.problem or "a record without fields")), None
    try:
        sample = form.sample(record.values)
        row = Row(record.origin, None, form.domain(record.values, name), form.weight(record.values))
    except UnreadableError as problem:
        return Row(record.origin, problem), None
    return row, None if sample.blank else sample
