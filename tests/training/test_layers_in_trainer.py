"""What a Trainer refuses where its layers freeze and thaw."""

from typing import Any

import pytest

import gradwise as gw
from gradwise.data import Collator

COLLATOR = Collator(pad_token_id=0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"torch_compile": True}, "gives up after eight"), ({"optim": "lomo"}, "backward")],
)
def test_what_cannot_go_with_layers_that_freeze_is_refused(
    story_model, arguments, speeches, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(gw.RecipeError, match=reason):
        gw.Trainer(
            story_model(), arguments(**settings), COLLATOR, speeches, recipe=gw.Recipe(layers=gw.Grass())
        )
