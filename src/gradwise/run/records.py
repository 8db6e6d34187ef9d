"""The records behind the samples of a pool, as their sources have them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.data import Pool
from gradwise.data.read import read
from gradwise.data.settings import Sources
from gradwise.errors import DataError


def records_of(sources: Sources, pool: Pool, indices: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """The record of each sample, in the order given; of large data only those asked for are kept.

    Args:
        sources: of the samples.
        pool: what was read from them.
        indices: places in the pool; repeats are allowed.

    Raises:
        DataError: when two records cannot be distinguished.
    """
    chosen: Any = pool.dataset.select(indices)
    origins = list(zip(chosen["domain"], chosen["origin"], strict=True))
    wanted = {origin for _, origin in origins}
    records_by_origin: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for source in sources if isinstance(sources, list) else [sources]:
        for part in read(source):  # type: ignore[arg-type]
            for record in part.records():
                if str(record.origin) in wanted:
                    domain = getattr(source, "domain", None) or part.name
                    records_by_origin.setdefault(str(record.origin), []).append((domain, record.values))
    for domain, origin in origins:
        # Files of one name in several folders: their domains tell them apart, where they differ.
        every = [values for _, values in records_by_origin[origin]]
        same = [
            values for record_domain, values in records_by_origin[origin] if record_domain == domain
        ] or every
        if len(same) > 1:
            raise DataError(
                f"Two records of the data are {origin} of the domain {domain!r}; give the files different "
                "names, or the sources domains."
            )
        yield same[0]
