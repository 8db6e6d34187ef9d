"""Modules that every process of a comparison needs, imported once in the server that forks them."""

import gc

import gradwise.comparison.runs
import gradwise.comparison.workbench  # noqa: F401

# Out of the collector's sight: going through it takes half a second in every process, which a run would be
# charged for when accelerate collects at its start, and copies every page that is shared.
gc.freeze()
