"""D3: in which order, by the influence that units of data have on one another (arXiv 2605.31164)."""

from gradwise.methods.d3.graph import InfluenceGraph
from gradwise.methods.d3.method import D3
from gradwise.methods.d3.published import PublishedD3
from gradwise.methods.d3.units import Units

__all__ = ["D3", "InfluenceGraph", "PublishedD3", "Units"]
