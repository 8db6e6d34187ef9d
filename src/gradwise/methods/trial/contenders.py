"""What both kinds of trial say of their contenders."""

from collections.abc import Sequence

from gradwise.errors import RecipeError


def check_contenders(section: str, contenders: Sequence[str], winner: str | None) -> None:
    """Raise RecipeError for fewer than two different contenders, or a winner that is none of them.

    Args:
        section: of the recipe.
        contenders: names of methods.
        winner: the one that won, where that is known.
    """
    if len(set(contenders)) < max(2, len(contenders)):
        raise RecipeError(
            f"{section}.contenders must name at least two different methods; found {list(contenders)}."
        )
    if winner is not None and winner not in contenders:
        raise RecipeError(
            f"{section}.winner is {winner}, which is none of the contenders {', '.join(contenders)}."
        )


def only_in_a_run(section: str, since: str = "") -> RecipeError:
    """The error where a winner is asked for and no run can find one; `since` says why one has to be found."""
    return RecipeError(
        f"{section}: {since}a trial trains the model for a few steps, which only a run can do; give "
        f"{section}.winner, or train."
    )
