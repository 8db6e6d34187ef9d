"""Data: from files and hub datasets to tokenised samples, packed rows and batches.

`load` returns a `Pool` of samples, `pack` arranges samples in rows, and `Collator` makes batches of them.
Nothing here knows of models, trainers or recipes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradwise.data.settings import Allowed, Data, Source

if TYPE_CHECKING:
    from gradwise.data.collate import Collator
    from gradwise.data.columns import check_dropped, is_indexable
    from gradwise.data.loading import load
    from gradwise.data.packing import even_rows, pack
    from gradwise.data.pool import Pool, Report, overlap, ragged, token_lengths
    from gradwise.data.words import label_words

# Looked up on first use: a recipe imports the settings above, and should pull in nothing more.
_HOMES = {
    "Collator": "gradwise.data.collate",
    **dict.fromkeys(["check_dropped", "is_indexable"], "gradwise.data.columns"),
    "load": "gradwise.data.loading",
    **dict.fromkeys(["even_rows", "pack"], "gradwise.data.packing"),
    **dict.fromkeys(["Pool", "Report", "overlap", "ragged", "token_lengths"], "gradwise.data.pool"),
    "label_words": "gradwise.data.words",
}

__all__ = [
    "Allowed",
    "Collator",
    "Data",
    "Pool",
    "Report",
    "Source",
    "check_dropped",
    "even_rows",
    "is_indexable",
    "label_words",
    "load",
    "overlap",
    "pack",
    "ragged",
    "token_lengths",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradwise.data' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
