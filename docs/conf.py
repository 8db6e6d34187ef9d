"""Settings of the documentation's site; `make docs` builds it into docs/_build."""

import re
from typing import Any

import gradwise

project = "gradwise"
author = "the gradwise authors"
copyright = author
release = gradwise.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = f"gradwise {release}"
exclude_patterns = ["_build", "results/figures"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# Links to folders and files outside of docs, which tests/test_links.py checks; pages of results, which their
# index links to.
suppress_warnings = ["myst.xref_missing", "toc.not_included"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_use_ivar = True


def _as_rst(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code`; what reStructuredText would take for markup is escaped."""
    text = re.sub(r"(`[^`]+`)(?=\w)", r"\1\0", "\n".join(lines))
    parts = re.split(r"(`[^`]+`)", text)
    escaped = (f"`{part}`" if part.startswith("`") else re.sub(r"([|*])", r"\\\1", part) for part in parts)
    lines[:] = "".join(escaped).replace("\0", "\\ ").split("\n")


def _on_the_site(_app: Any, _name: str, source: list[str]) -> None:
    """CONTRIBUTING.md lies outside of docs, and is a page of the site under another name."""
    source[0] = source[0].replace("](../../CONTRIBUTING.md", "](../contributing.md")


def setup(app: Any) -> None:
    """Docstrings are escaped before napoleon, which comes at 500, makes its fields."""
    app.connect("source-read", _on_the_site)
    app.connect("autodoc-process-docstring", _as_rst, priority=400)
