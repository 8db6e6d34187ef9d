"""`gradwise train` without the command line: a recipe, a folder, and the trained model."""

from gradwise.run.directory import RunDirectory
from gradwise.run.execute import Outcome, train

__all__ = ["Outcome", "RunDirectory", "train"]
