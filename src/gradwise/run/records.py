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
    """The record of each sample at `indices`, read again from the sources of the pool; only these are kept in
    memory. Raises DataError if the sources are no longer what the pool was read from."""
    chosen: Any = pool.dataset.select(indices)
    # By place and not by origin and domain: two files of one name may give both alike.
    places = pool.records[indices].tolist()
    wanted = set(places)
    several = sources if isinstance(sources, list) else [sources]
    records = (
        record
        for source in several
        for part in read(source)  # type: ignore[arg-type]
        for record in part.records()
    )
    records_by_place = {place: record for place, record in enumerate(records) if place in wanted}
    for place, origin in zip(places, chosen["origin"], strict=True):
        record = records_by_place.get(place)
        if record is None or str(record.origin) != origin:
            raise DataError(
                f"The data have changed since they were read: {origin} is no longer where it was. Run the "
                "command again in a new folder."
            )
        yield record.values
