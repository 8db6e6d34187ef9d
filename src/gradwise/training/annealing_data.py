"""Samples that a Trainer trains on in its annealing phase only; a plan numbers them behind the training
samples."""

from typing import Any

import datasets
from torch.utils.data import ConcatDataset

from gradwise.errors import RecipeError
from gradwise.recipe import Recipe


def check_annealing_data(recipe: Recipe, samples: Any, train: Any, *, proxied: bool) -> None:
    """Refuse samples for the annealing phase that have no effect, are missing, or are unlike the training
    data.

    Args:
        recipe: of the run.
        samples: the samples, if the user gave some.
        train: the training data.
        proxied: whether another model than the one that trains computes the signals.

    Raises:
        RecipeError: in one sentence.
    """
    if recipe.anneal is None:
        if samples is not None:
            raise RecipeError("anneal_dataset has no effect without `anneal` in the recipe; leave it out.")
        return
    if samples is None and recipe.anneal.data is not None:
        raise RecipeError("anneal.data is for `gradwise train`; with a Trainer, give it an `anneal_dataset`.")
    recipe.check_annealing_data(samples is not None, proxied=proxied)
    if samples is None:
        return
    if not all(hasattr(samples, name) for name in ("__getitem__", "__len__")) or not len(samples):
        raise RecipeError(f"anneal_dataset must hold samples by position; found {type(samples).__name__}.")
    needed, columns = _columns(train), _columns(samples)
    if needed != columns or isinstance(train, datasets.Dataset) != isinstance(samples, datasets.Dataset):
        raise RecipeError(
            f"anneal_dataset must be a {type(train).__name__} as train_dataset is, with its columns "
            f"({needed or 'none'}); found a {type(samples).__name__} ({columns or 'none'})."
        )


def appended(train: Any, added: Any) -> Any:
    """The training samples, and behind them those of the annealing phase only."""
    if not isinstance(train, datasets.Dataset):
        return ConcatDataset([train, added])
    form = dict(train.format)
    form |= form.pop("format_kwargs")  # as `with_format` takes it
    return datasets.concatenate_datasets([train, added.cast(train.features).with_format(**form)])


def _columns(dataset: Any) -> str:
    return ", ".join(sorted(getattr(dataset, "column_names", None) or ()))
