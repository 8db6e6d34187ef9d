"""GRACE: a coreset by coverage and importance that follows the training (arXiv 2604.11810)."""

from gradwise.methods.grace.method import Grace

__all__ = ["Grace"]
