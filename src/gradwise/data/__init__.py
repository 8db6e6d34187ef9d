"""Data: from files and hub datasets to tokenised samples, packed rows and batches.

It knows nothing of models, trainers or recipes: `load` gives a `Pool`, `pack` arranges samples in rows,
`Collator` makes batches of them.
"""

from gradwise.data.collate import Collator
from gradwise.data.lengths import token_lengths
from gradwise.data.load import load
from gradwise.data.packing import even_rows, pack
from gradwise.data.pool import Pool, Report, overlap, ragged
from gradwise.data.settings import Allowed, Data, Source
from gradwise.data.words import label_words

__all__ = [
    "Allowed",
    "Collator",
    "Data",
    "Pool",
    "Report",
    "Source",
    "even_rows",
    "label_words",
    "load",
    "overlap",
    "pack",
    "ragged",
    "token_lengths",
]
