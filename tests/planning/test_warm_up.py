"""A selection made after a warm-up that is taken back: its order is one for the weights that train."""

from typing import Any

import numpy as np
import pytest

import gradwise as gw
from gradwise.data import Collator
from gradwise.methods.baselines import EasyFirst, Less, MostUsefulFirst


def test_samples_without_label_tokens_do_not_warm_up(story_model: Any, arguments: Any, speeches: Any) -> None:
    """A batch of them alone has no gradient; it ended the run."""
    train = speeches.select(range(12)).map(
        lambda row, place: {"labels": [-100] * len(row["labels"])} if place % 2 else row, with_indices=True
    )
    trainer = gw.Trainer(
        story_model(),
        arguments("run", max_steps=1, per_device_train_batch_size=1),
        train_dataset=train,
        target_dataset=speeches.select(range(36, 40)),
        recipe=gw.Recipe(select=Less(count=4, checkpoints=1, warm_up_fraction=0.5)),
    )
    trainer.session.tell = lambda _: None
    trainer.session.open(None)
    trainer.session.prepare()
    assert trainer.session.plan is not None
    trainer.session.close()


@pytest.mark.parametrize("order", [EasyFirst(), MostUsefulFirst()], ids=lambda order: order.method)
def test_the_order_is_by_signals_at_the_weights_that_train(
    story_model: Any, arguments: Any, speeches: Any, order: Any
) -> None:
    train, model = speeches.select(range(12)), story_model()
    signals = gw.collect(model, train, Collator(0), want=sorted(order.needs), progress=False)
    trainer = gw.Trainer(
        model,
        arguments("run", max_steps=1, learning_rate=0.1),
        train_dataset=train,
        target_dataset=speeches.select(range(36, 40)),
        recipe=gw.Recipe(select=Less(count=8, checkpoints=2, warm_up_fraction=0.5), order=order),
    )
    trainer.session.tell = lambda _: None
    trainer.session.open(None)
    trainer.session.prepare()
    plan = trainer.session.plan
    trainer.session.close()
    assert plan is not None
    served = plan.segments[0].indices
    expected = order.order(signals, np.sort(served), epoch=0, seed=0).indices
    assert served.tolist() == expected.tolist()
