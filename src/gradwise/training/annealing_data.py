"""Samples that a Trainer trains on in its annealing phase only; a plan numbers them behind the training
samples."""

from typing import Any

import datasets
from torch.utils.data import ConcatDataset

from gradwise.errors import RecipeError
from gradwise.recipe import Recipe


def check_annealing_data(recipe: Recipe, given: Any, train: Any, *, proxied: bool) -> None:
    """Refuse samples for the annealing phase that have no effect, are missing, or are unlike the training
    data.

    Args:
        recipe: of the run.
        given: the samples, if the user gave some.
        train: the training data.
        proxied: whether another model than the one that trains computes the signals.

    Raises:
        RecipeError: in one sentence.
    """
    if recipe.anneal is None:
        if given is not None:
            raise RecipeError("anneal_dataset has no effect without `anneal` in the recipe; leave it out.")
        return
    if given is None and recipe.anneal.data is not None:
        raise RecipeError("anneal.data is for `gradwise train`; with a Trainer, give it an `anneal_dataset`.")
    recipe.check_annealing_data(given is not None, proxied=proxied)
    if given is None:
        return
    if not all(hasattr(given, name) for name in ("__getitem__", "__len__")) or not len(given):
        raise RecipeError(f"anneal_dataset must hold samples by position; found {type(given).__name__}.")
    needed, found = _columns(train), _columns(given)
    if needed != found or isinstance(train, datasets.Dataset) != isinstance(given, datasets.Dataset):
        raise RecipeError(
            f"anneal_dataset must be a {type(train).__name__} as train_dataset is, with its columns "
            f"({needed or 'none'}); found a {type(given).__name__} ({found or 'none'})."
        )


def appended(train: Any, added: Any) -> Any:
    """The training samples, and behind them those of the annealing phase only."""
    if not isinstance(train, datasets.Dataset):
        return ConcatDataset([train, added])
    return datasets.concatenate_datasets([train, added.cast(train.features).with_format(**_format(train))])


def _format(dataset: datasets.Dataset) -> dict[str, Any]:
    """How a data set gives its samples, as `with_format` takes it."""
    found = dict(dataset.format)
    return found | found.pop("format_kwargs")


def _columns(dataset: Any) -> str:
    return ", ".join(sorted(getattr(dataset, "column_names", None) or ()))
