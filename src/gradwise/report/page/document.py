"""The page as blocks, and blocks as one HTML file.

All text goes through Jinja2's escaping after `clean` has spelled out control characters and marks that
reverse text, so that no sample can act on the page or on who reads it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import jinja2
from markupsafe import Markup

from gradwise.atomic import write_text
from gradwise.errors import GradwiseError, RecipeError
from gradwise.folders import add_file
from gradwise.text import clean, clipped

REPORT = "report.html"

ASSETS = Path(__file__).parent / "assets"

MOST_CHARACTERS = 320
"""Characters of a sample's text that are shown."""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text; `look` is a class of the style sheet."""

    text: str
    look: str = ""
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Command:
    """A command to be copied."""

    text: str
    kind: ClassVar[str] = "command"


@dataclass(frozen=True)
class Notes:
    """A list of sentences."""

    items: Sequence[str]
    kind: ClassVar[str] = "notes"


@dataclass(frozen=True)
class Fact:
    """A key number."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Facts:
    """Key numbers, side by side."""

    facts: Sequence[Fact]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Figure:
    """A drawing with its legend (names with classes) and caption."""

    drawing: Markup
    caption: str = ""
    legend: Sequence[tuple[str, str]] = ()
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class TableColumn:
    """A column of a table; `look` is `number`, `words` or `sample` (text of the data)."""

    name: str
    look: str = "words"


@dataclass(frozen=True)
class Cell:
    """A field of a table."""

    text: str
    sort: float | None = None
    """What it is sorted by; if unset, its text."""
    look: str = ""


@dataclass(frozen=True)
class Table:
    """A sortable table."""

    label: str
    columns: Sequence[TableColumn]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Folded:
    """Details that are opened on demand."""

    title: str
    text: str = ""
    blocks: Sequence["Block"] = ()
    kind: ClassVar[str] = "folded"


Block = Paragraph | Heading | Command | Notes | Facts | Figure | Table | Folded


@dataclass(frozen=True)
class Section:
    """A section of the page; the title of the first is not shown."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """Everything that is shown."""

    kind: str
    title: str
    lead: str
    sections: Sequence[Section]
    missing: Sequence[str] = ()
    """A sentence on each file that is missing or damaged."""
    trouble: str = "Not everything could be read."
    """What stands above these sentences."""


def number(value: float | None, digits: int = 4, *, sign: bool = False) -> Cell:
    """A number as a field; empty for None and NaN."""
    if value is None or not math.isfinite(value):
        return Cell("", None)
    return Cell(f"{value:{'+' if sign else ''},.{digits}f}", float(value))


def sample_text(text: object) -> str:
    """The beginning of a sample's text."""
    return clipped(str(text), MOST_CHARACTERS)


@cache
def _environment() -> jinja2.Environment:
    """Values of text are cleaned before they are escaped; markup that was made here is left as it is."""

    def cleaned(value: object) -> object:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        finalize=cleaned,
        undefined=jinja2.StrictUndefined,
    )


def html(page: Page) -> str:
    """The page as HTML."""
    css, js = (Markup((ASSETS / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    template = _environment().get_template("page.html")
    return template.render(page=page, css=css, js=js, version=version("gradwise"))


def write_html(page: Page, path: Path) -> None:
    """Write the page. Raises RecipeError if the file exists and is not an earlier report."""
    content = html(page)
    # Before the marker is asked: a run's own record is gradwise's as well.
    if path.exists() and not _is_report(path):
        raise RecipeError(
            f"{path} is no report of gradwise's and would be overwritten; move it, or give another --out."
        )
    if path.is_file() and path.read_bytes() == content.encode("utf-8", "backslashreplace"):
        return
    try:
        add_file(path, content.encode("utf-8", "backslashreplace"))
    except GradwiseError:
        # The marker may be damaged, or a run in progress hold the folder; neither prevents a report.
        write_text(path, content)


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b'<meta name="generator" content="gradwise' in file.read(400)
    except OSError:
        return False
