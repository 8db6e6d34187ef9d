"""What planning asks of a method: a selector, an order. Layers and annealing selections have files of their
own.

A method is a frozen settings dataclass that derives from one of these classes. The base classes answer every
question of planning for a method that decides once, so that planning never asks which method it has.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gradwise.methods.costs import RunSize, SelectionForecast, Speeds
from gradwise.methods.decision import Order, Selection
from gradwise.settings import Settings
from gradwise.signals import Signals

if TYPE_CHECKING:
    from gradwise.methods.d3.graph import InfluenceGraph
    from gradwise.methods.d3.units import Units
    from gradwise.probing import Probe

Places = NDArray[np.int64]
"""(n,) positions in the pool."""

Arrays = dict[str, NDArray[Any]]
"""Plain arrays by name, as a checkpoint holds them."""


@dataclass(frozen=True)
class Method(Settings, ABC):
    """What every method has: a name in recipes, and the signals that it decides by."""

    if TYPE_CHECKING:
        method: str

    needs: ClassVar[frozenset[str]] = frozenset()
    """Signals of every sample of the pool that must be known before it decides: quantities that are measured
    (see `gradwise.collect`), or `num_tokens`, `domain`, `words`, which are read from the data."""

    plots: ClassVar[str | None] = None
    """What the command line can draw of a decision: "coreset", "graph" or "spectrum"."""


# ---- select


class SelectionState(Protocol):
    """What a method remembers between two selections."""

    @property
    def every(self) -> int:
        """Optimizer steps from one selection to the next; 0 for a single selection."""
        ...

    @property
    def refreshes(self) -> int:
        """Refreshes so far."""
        ...

    @property
    def sample(self) -> Places:
        """(m,) the sample of the pool that each node stands for."""
        ...

    def arrays(self) -> Arrays:
        """All of it, by name."""
        ...


class Budgeted(NamedTuple):
    """What a selection may cost, and the settings that follow."""

    method: Any
    """The method, with what was measured or derived filled in."""
    forecast: SelectionForecast
    sentence: str
    """What it is expected to cost, for the console."""


class TextMatch(Protocol):
    """How the texts of a pool compare with a target, before any model is asked."""

    closeness: float | None

    @property
    def garbled(self) -> NDArray[np.bool_]: ...

    @property
    def copies(self) -> NDArray[np.bool_]: ...

    def advice(self) -> str | None:
        """A sentence for the user, if there is anything to say."""
        ...

    def best(self, count: int) -> Places:
        """The closest samples, best first."""
        ...


class WarmUp(NamedTuple):
    """Training before a selection, that is taken back once its checkpoints were scored."""

    fraction: float
    """Fraction of the pool that it trains on, drawn at random."""
    epochs: int
    """Number of epochs, each of which ends in a checkpoint."""


class RefreshResult(Protocol):
    """The state after a refresh, and how it went."""

    @property
    def state(self) -> SelectionState: ...

    @property
    def graph_seconds(self) -> float: ...

    def details(self) -> dict[str, Any]:
        """Plain values for the record."""
        ...


@dataclass(frozen=True)
class Selector(Method):
    """Chooses what is trained on.

    A method that selects once defines `needs` and `select`. One whose selection is kept fresh while the model
    learns overrides the rest too, which planning calls in this order: `budgeted`, `rows_to_score`, `begin`,
    `pick`; and at each refresh `anchors_at`, `refresh`, `pick`.
    """

    @abstractmethod
    def select(self, signals: Signals, *, seed: int = 0) -> Selection:
        """The samples of a pool to train on."""

    # A method that selects towards a target derives from `gradwise.methods.targeting.Targeted`.

    @property
    def uses_target(self) -> bool:
        """Whether it selects towards a target."""
        return False

    @property
    def contender_methods(self) -> "dict[str, Selector]":
        """Methods that a run tries before its first step; empty for none."""
        return {}

    def resolved(self) -> "Selector | None":
        """The method that selects; None until a trial was held."""
        return self

    @property
    def warm_up_training(self) -> WarmUp | None:
        """Training that must precede the scoring run; None for none."""
        return None

    def resolve_target(self, *, target: bool, validation: bool) -> Literal["target", "validation"] | None:
        """The set that it selects towards, given which sets there are; None for none.

        Raises:
            RecipeError: the set that it names, or needs, is not given.
        """
        return None

    def with_target(self, goal: Literal["target", "validation"] | None) -> Self:
        """The same method with its target settled."""
        return self

    def match_texts(self, signals: Signals, target: Signals) -> TextMatch | None:
        """What the texts of a pool and a target say before a model is asked; None where that is nothing."""
        return None

    def size_in_run(self, pool: int, mean_tokens: Callable[[], float]) -> int:
        """Samples of an epoch, before anything is selected.

        Args:
            pool: samples to select from.
            mean_tokens: counts the label tokens of a sample, on average.
        """
        return pool

    def for_run(self, pool: int, trained: float | None) -> Self:
        """The same method with what follows from the length of the run filled in.

        Args:
            pool: samples to select from.
            trained: samples that the run trains on, each as often as it comes; None where that follows from
                the selection.

        Raises:
            RecipeError: a size asks for more than there are.
        """
        return self

    def budgeted(
        self,
        size: Callable[[], RunSize],
        speeds: Callable[[], Speeds],
        *,
        once: str | None,
        scores_all: bool,
    ) -> Budgeted | None:
        """What the selection may cost in a run; None for a method that costs one scoring run of the pool.

        Args:
            size: of the run.
            speeds: measures the machine.
            once: why the selection cannot be refreshed in this run; None if it can.
            scores_all: whether every sample must be scored, since another decision needs it.

        Raises:
            RecipeError: the settings ask for more than they allow.
        """
        return None

    def compile_kernels(self) -> None:
        """Compile what is compiled at the first use, so that it is not timed."""

    def rows_to_score(
        self, pool: int, domain: NDArray[np.str_] | None, seed: int, match: object = None
    ) -> Places | None:
        """The samples to score, ascending; None for all of them.

        Args:
            pool: number of samples.
            domain: of each of them.
            seed: of what is left to chance.
            match: what `match_texts` returned.
        """
        return None

    def begin(
        self,
        signals: Signals,
        *,
        scored_rows: Places | None = None,
        pool: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        took: dict[str, float] | None = None,
        forecast: SelectionForecast | None = None,
        target: Signals | None = None,
        match: object = None,
    ) -> SelectionState | None:
        """What to remember of the first scoring run; None for a method that remembers nothing."""
        return None

    def pick(
        self, state: object, signals: Signals, *, target: Signals | None = None, seed: int = 0
    ) -> Selection:
        """The selection by what is known now; `signals` are those of the whole pool."""
        return self.select(signals, seed=seed)

    # The three below are asked only of a method whose `begin` remembers something; others select once.

    def anchors_at(self, state: object, step: int) -> Places:
        """The nodes to score again at a step."""
        raise NotImplementedError

    def refresh(
        self,
        state: object,
        anchors: Places,
        signals: Signals,
        step: int,
        *,
        target: Signals | None = None,
        device: str = "cpu",
    ) -> RefreshResult:
        """The state after some nodes were scored again."""
        raise NotImplementedError

    def restored(self, arrays: Arrays) -> SelectionState:
        """The state that was kept in a checkpoint."""
        raise NotImplementedError

    def advice(self, selection: Selection) -> str | None:
        """A sentence on what a user should know of a selection; None if there is nothing."""
        return None

    def standalone_advice(self) -> str | None:
        """A sentence on how a selection outside of a run differs from one in a run; None if it does not."""
        return None


# ---- order


@dataclass(frozen=True)
class Orderer(Method):
    """Puts the entries of an epoch in order."""

    @abstractmethod
    def order(
        self,
        signals: Signals,
        entries: Places | None = None,
        *,
        target: Signals | None = None,
        probe: object = None,
        epoch: int = 0,
        seed: int = 0,
    ) -> Order:
        """A permutation of the entries.

        Args:
            signals: of the pool.
            entries: (n,) positions in the pool, one for each time a sample is to be seen. If unset, each
                sample once.
            target: signals of the samples whose loss is to fall, for orders that use them. If unset, the
                pool's own.
            probe: a `gradwise.Probe`, for orders that measure influence.
            epoch, seed: decide what is left to chance.

        Raises:
            SignalError: a needed signal is missing.
            PlanError: entries are no positions in the pool.
        """

    @property
    def influence(self) -> "InfluenceOrder | None":
        """The same method, if it measures the influence of samples on one another; otherwise None."""
        return None

    def for_batches(self, batch_size: int, *, packed: bool) -> Self:
        """The method with what follows from the batch size filled in."""
        return self


class Timetable(NamedTuple):
    """How often influence is measured, and on how many samples of each node."""

    every: int
    """Steps between two measurements, the first being before the first step; 0 for never."""
    probes: int
    cost: float = 0.0
    """Scoring cost as a fraction of training cost, in forward/backward passes per sample."""
    problem: str | None = None
    """Why nothing is measured, if so."""
    restarts: bool = False
    """Whether the count of steps begins again with each epoch and with the annealing phase."""


class InfluenceOrder(Orderer, ABC):
    """An order that a graph of influences constrains. Planning calls `initial_order` for each epoch as it is
    planned, then, when influence is due, `units_of`, `measure` and `arrange`."""

    if TYPE_CHECKING:
        target: str
        units: str | int
        window: int | None
        keep: float
        threshold: float

    @property
    @abstractmethod
    def edges_in_run(self) -> str:
        """How influence is measured where a model can be asked."""

    @property
    @abstractmethod
    def grouped(self) -> bool:
        """Whether units are pieces of groups that last."""

    def check_in_run(self, batch_size: int) -> None:
        """Raise RecipeError where the order could change nothing in steps of this many samples."""

    def check_groups(self, groups: int, units: int) -> None:
        """Raise RecipeError for more groups than can be balanced over this many units."""

    @abstractmethod
    def groups(self, signals: Signals, *, seed: int) -> NDArray[Any]:
        """(N,) the group of every sample."""

    @abstractmethod
    def initial_order(
        self,
        signals: Signals,
        entries: Places,
        *,
        group: NDArray[Any] | None,
        batch_size: int,
        epoch: int,
        seed: int,
    ) -> Order:
        """The balanced order of an epoch, before influence is measured."""

    @abstractmethod
    def timetable(self, steps: int, batch_size: int, nodes: int) -> Timetable:
        """How often to measure within the overhead."""

    @abstractmethod
    def units_of(self, entries: Places, group: NDArray[Any] | None, batch_size: int) -> "Units":
        """Entries cut into units."""

    @abstractmethod
    def measure(
        self, probe: "Probe", units: "Units", *, edges: str, rng: np.random.Generator, probes: int | None
    ) -> "InfluenceGraph | None":
        """Influences at a model's present weights; None where there are fewer than two nodes to measure."""

    @abstractmethod
    def arrange(
        self,
        units: "Units",
        graph: "InfluenceGraph | None",
        features: NDArray[Any],
        rng: np.random.Generator,
        *,
        seed: int,
        first: int | None = None,
    ) -> Any:
        """Units in order; with `first`, only this number of entries must be in the final order."""

    @abstractmethod
    def missing_note(self, units: "Units", graph: "InfluenceGraph | None") -> str | None:
        """What could not be measured of units, in a sentence; None where all was."""

    @abstractmethod
    def measurement_details(self, timetable: Timetable) -> dict[str, Any]:
        """How much is measured of each node, for the record."""

    @abstractmethod
    def standalone_cost(self, signals: Signals, entries: Places, *, seed: int) -> str | None:
        """A sentence on the cost of measuring the influences of a whole epoch at once, where it is high."""
