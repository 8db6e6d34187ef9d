"""What the pictures of a run have in common: colours, and how a figure becomes PNG."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"


def png(figure: "Figure") -> bytes:
    """A figure as PNG, without the version of matplotlib that drew it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
