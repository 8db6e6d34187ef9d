"""What cannot be saved is refused before the first step."""

from collections.abc import Callable
from typing import Any

import pytest

import gradwise as gw
from gradwise import RecipeError
from gradwise.data import Collator


def contradict(model: Any) -> None:
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.6


def misplace(model: Any) -> None:
    model.config.num_beams = 4  # a generation setting


def share(model: Any) -> None:
    first, second = model.model.layers[:2]
    first.mlp.up_proj.weight = second.mlp.up_proj.weight


class Unwritable:
    def save_pretrained(self, _: str) -> None:
        raise TypeError("Object of type set is not JSON serializable")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (contradict, r"generation settings \(model\.generation_config\) cannot be saved: .*temperature"),
        (share, r"weights cannot be saved, since some share memory: .*up_proj"),
        (
            lambda model: setattr(model.config, "extra", {1, 2}),
            r"configuration \(model\.config\) cannot be saved",
        ),
        (
            lambda model: setattr(model, "peft_config", {"a": Unwritable()}),
            "adapter 'a' cannot be saved: Object",
        ),
    ],
)
def test_refused(story_model: Any, arguments: Any, speeches: Any, spoil: Callable[[Any], Any], sentence: str):
    model = story_model()
    spoil(model)
    trainer = gw.Trainer(model, arguments(), Collator(0), speeches)
    with pytest.raises(RecipeError, match=sentence):
        trainer.train()
    assert trainer.state.global_step == 0 and trainer.session.plan is None


def test_a_tokenizer(story_model: Any, arguments: Any, speeches: Any):
    trainer = gw.Trainer(
        story_model(),
        arguments(),
        Collator(0),
        speeches,
        processing_class=Unwritable(),  # type: ignore[arg-type]
    )
    with pytest.raises(RecipeError, match="The model's tokenizer cannot be saved: Object of type set"):
        trainer.train()


def test_no_room_for_temporary_files(
    story_model: Any, arguments: Any, speeches: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    with pytest.raises(RecipeError, match=r"Cannot write temporary files .* set TMPDIR"):
        gw.Trainer(story_model(), arguments(), Collator(0), speeches).train()
