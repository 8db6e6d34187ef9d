"""An Axolotl plugin: layer policies in Axolotl's own trainers. It has not been run with Axolotl yet.

    plugins: [gradwise.integrations.axolotl.GradwisePlugin]
    gradwise_layers: {method: grass, active: 2}

Data are selected and ordered before, by `gradwise select` and `gradwise order`, whose records are a data set
that Axolotl reads.
"""

from typing import Any

import transformers
from axolotl.integrations.base import BasePlugin  # pyright: ignore[reportMissingImports]
from pydantic import BaseModel

from gradwise.errors import RecipeError
from gradwise.integrations.callback import LayerCallback
from gradwise.recipe import Recipe


class GradwiseArgs(BaseModel):
    """Keys of an Axolotl configuration that this plugin reads."""

    gradwise_layers: str | dict[str, Any] | None = None
    """As `layers` in a recipe."""

    gradwise_seed: int = 0
    """Decides the draws of layers."""


class GradwisePlugin(BasePlugin):
    """Adds the layer policy to the trainer that Axolotl makes."""

    def get_input_args(self) -> str:
        """Where Axolotl finds the keys."""
        return f"{__name__}.{GradwiseArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: transformers.Trainer) -> list[LayerCallback]:  # noqa: ARG002
        """The callback, if a policy is named."""
        layers = cfg.gradwise_layers
        if not layers:
            return []
        policy = Recipe.from_dict(
            {"layers": layers if isinstance(layers, str) else dict(layers)}
        ).layers.policy
        if policy is None:
            raise RecipeError("gradwise_layers: all updates every layer; leave it out.")
        return [LayerCallback(policy, seed=cfg.gradwise_seed or 0)]
