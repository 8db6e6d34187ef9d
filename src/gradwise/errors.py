"""What gradwise raises: one root, a child for each place where a user can put something right."""

from gradwise.text import clean


class GradwiseError(Exception):
    """Root of every error raised on purpose; its message says what, what was found, and what to do.

    Messages quote keys, names and file names of others, so control characters in them are spelled out.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(clean(item) if isinstance(item, str) else item for item in args))


class RecipeError(GradwiseError):
    """A recipe that cannot be run: an unknown key, a wrong type, a combination that contradicts itself."""


class DataError(GradwiseError):
    """Records that cannot be read, or that would leave nothing to train on."""


class SignalError(GradwiseError):
    """A per-sample quantity that could not be computed."""


class PlanError(GradwiseError):
    """A plan that was altered, or that does not belong to the data it is used with."""


class CheckpointError(GradwiseError):
    """A checkpoint that is incomplete, damaged, or from another run."""


class StorageError(GradwiseError):
    """A file that could not be written: the disk is full, read-only, or failing."""


class EvaluationError(GradwiseError):
    """A finished model that could not be measured; the model itself is saved by then."""
