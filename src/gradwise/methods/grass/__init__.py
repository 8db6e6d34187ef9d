"""GRASS: layers drawn by the size of their gradient (arXiv 2604.07808)."""

from gradwise.methods.grass.policy import Grass

__all__ = ["Grass"]
