"""The recipe: everything that decides a run, in one YAML file or one frozen dataclass."""

from gradwise.data.settings import Data
from gradwise.evaluation.settings import Metrics
from gradwise.recipe.recipe import Recipe
from gradwise.recipe.sections import Adapter, Model, SignalSettings, Train

__all__ = ["Adapter", "Data", "Metrics", "Model", "Recipe", "SignalSettings", "Train"]
