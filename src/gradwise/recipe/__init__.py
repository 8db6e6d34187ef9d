"""The recipe: everything that decides a run, in one YAML file or one frozen dataclass."""

from gradwise.data.settings import Data
from gradwise.recipe.recipe import Recipe
from gradwise.recipe.sections import Adapter, Model, SignalSettings, Train

__all__ = ["Adapter", "Data", "Model", "Recipe", "SignalSettings", "Train"]
