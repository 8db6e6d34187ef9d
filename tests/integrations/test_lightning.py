"""Lightning's Trainer with a plan and a layer policy: every epoch of the plan, and exact resuming."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import gradwise as gw
from gradwise.data import Collator
from gradwise.training.layers import LayerSwitch

lightning = pytest.importorskip("lightning")
checkpoints = pytest.importorskip("lightning.pytorch.callbacks")

PLAN = gw.Plan.of([[4, 2, 0, 1, 3, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0]])


@pytest.fixture
def fit(story_model: Any, speeches: Any, tmp_path: Path) -> Any:
    """Trains the story model by Lightning; returns its module."""
    from gradwise.integrations.lightning import GradwiseCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = story_model()
            self.seen: list[list[int]] = []
            self.active: list[tuple[int, ...]] = []

        def samples(self) -> list[int]:
            return [number for batch in self.seen for number in batch]

        def training_step(self, batch: Any) -> torch.Tensor:
            self.seen.append(batch.pop("number").tolist())
            self.active.append(callback.switch.active)
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    callback: Any = None

    def collate(samples: list[Any]) -> dict[str, Any]:
        return Collator(0)([row for _, row in samples]) | {"number": torch.tensor([n for n, _ in samples])}

    def run(
        *,
        plan: gw.Plan = PLAN,
        workers: int = 0,
        resume: str | None = None,
        save_at: int | None = None,
        **options: Any,
    ) -> Any:
        nonlocal callback
        callback = GradwiseCallback(gw.Grass(active=2, period=2, probe=1), plan=plan)
        rows = [(n, {k: speeches[n][k] for k in ("input_ids", "labels")}) for n in range(6)]
        loader = DataLoader(
            rows, batch_size=2, sampler=callback.sampler, collate_fn=collate, num_workers=workers  # type: ignore[arg-type]
        )  # fmt: skip
        saving = checkpoints.ModelCheckpoint(tmp_path, every_n_train_steps=save_at or 99, save_top_k=-1)
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, callbacks=[callback, saving], enable_progress_bar=False,
            enable_model_summary=False, max_epochs=3, **options,
        )  # fmt: skip
        module = Module()
        trainer.fit(module, loader, ckpt_path=resume)
        return module

    return run


def test_every_epoch_of_the_plan_is_trained_on(fit: Any) -> None:
    module = fit()
    assert module.samples() == PLAN.indices.tolist()
    assert len(set(module.active[1:])) > 1 and all(len(active) == 2 for active in module.active[1:])
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(("workers", "step"), [(0, 4), (0, 6), (2, 4)])
def test_a_resumed_run_ends_as_one_never_stopped(fit: Any, tmp_path: Path, workers: int, step: int) -> None:
    whole = fit(workers=workers, save_at=step)
    (saved,) = tmp_path.glob(f"*step={step}.ckpt")
    resumed = fit(workers=workers, resume=str(saved))
    assert resumed.samples() == PLAN.indices.tolist()[2 * step :]
    assert resumed.active == whole.active[step:]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_accumulated_batches_are_one_step(fit: Any) -> None:
    module = fit(accumulate_grad_batches=3)
    assert module.active[3:6] == [module.active[3]] * 3
    assert module.samples() == PLAN.indices.tolist()


def test_epochs_of_different_lengths_need_the_loader_again(fit: Any) -> None:
    plan = gw.Plan.of([[4, 2, 0], [0, 3, 1, 4, 2, 5], [5, 4, 3]])
    with pytest.raises(gw.PlanError, match="epochs have 3 to 6 samples"):
        fit(plan=plan)
    module = fit(plan=plan, reload_dataloaders_every_n_epochs=1)
    assert module.samples() == plan.indices.tolist()


def test_what_an_abandoned_iterator_drew_is_served_again() -> None:
    from gradwise.integrations.lightning import EpochSampler

    sampler = EpochSampler(PLAN)
    sampler.use(2, last=False)
    ahead = iter(sampler)
    assert [next(ahead), next(ahead)] == [0, 1]
    assert list(sampler) == [0, 1, 3, 5]


def test_a_run_that_time_ends_has_no_number_of_steps(story_model: Any, monkeypatch: Any) -> None:
    """And a second fit of a callback that resumed begins with layers of its own."""
    from gradwise.integrations.lightning import GradwiseCallback

    model, loaded = story_model(), []
    trainer: Any = SimpleNamespace(
        optimizers=[torch.optim.AdamW(model.parameters())], estimated_stepping_batches=math.inf
    )
    monkeypatch.setattr(LayerSwitch, "load_state_dict", lambda _, state: loaded.append(state))
    callback = GradwiseCallback(gw.Grass(active=2, period=2, probe=1))
    callback.load_state_dict({"layers": {"drawn": 1}, "sampler": None})
    for _ in range(2):
        callback.on_train_start(trainer, model)
        callback.on_train_end()
    assert loaded == [{"drawn": 1}]
