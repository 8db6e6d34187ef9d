"""Data: from files and hub datasets to tokenised samples, packed rows and batches.

`load` returns a `Pool` of samples, `pack` arranges samples in rows, and `Collator` makes batches of them.
Nothing here knows of models, trainers or recipes.
"""

from gradwise.data.collate import Collator
from gradwise.data.columns import check_dropped
from gradwise.data.load import load
from gradwise.data.packing import even_rows, pack
from gradwise.data.pool import Pool, Report, overlap, ragged, token_lengths
from gradwise.data.settings import Allowed, Data, Source
from gradwise.data.words import label_words

__all__ = [
    "Allowed",
    "Collator",
    "Data",
    "Pool",
    "Report",
    "Source",
    "check_dropped",
    "even_rows",
    "label_words",
    "load",
    "overlap",
    "pack",
    "ragged",
    "token_lengths",
]
