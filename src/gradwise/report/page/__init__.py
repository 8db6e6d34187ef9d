"""One HTML page about a run or a comparison, self-contained: figures are SVG, and nothing is fetched."""
