"""Search for a linear order by insertions: a row is taken out and put where it gains most.

A row's best place is found in O(n): passing one neighbour after another, its gain changes by one difference
each. An order in which no row gains is a local optimum. Orders are bred, after Schiavinotto and Stuetzle
(2004): of a few local optima two are recombined, the child climbs to a local optimum and takes the place of
the worst if it is better and new. When none has been for a while, all orders but the best make room for
others.

A move is one row looked at over all of its places. Recombining costs less than the moves that follow.
"""

from typing import Any

import numba
import numpy as np

from gradwise.numerics.precedence import extended

POPULATION, PATIENCE = 25, 250
"""Orders that are bred from, and children in turn that may be no better before others come in. Mean gap to
the published best values of seven input-output matrices of n = 150 and 250 by the default moves: 0.15 %;
with none kept when others come in 0.20 %, with 40 orders 0.20 %, with 15 0.21 %; on four of them kicks of one
order (iterated local search) leave 0.34 % and more, children that are kicked as well 0.24 %. On made-up
matrices averaged ranks instead of this recombination leave five times the gap."""


@numba.njit(nogil=True, cache=True)
def evolved(
    gains: Any, walls: Any, before: Any, first: Any, rng: Any, moves: int, bound: float, tolerance: float
) -> Any:
    """The best order found.

    Args:
        gains: (n, n) antisymmetric, what i before j is worth.
        walls: (n, n) the same, infinite where i has to come before j and minus infinite where after, so that
            no row gains by passing one that it must not pass.
        before: (n, n) bool, those pairs.
        first: (n,) an order that keeps to them, where the search begins.
        rng: a numpy Generator.
        moves: rows that may be looked at.
        bound: what no order is worth more than; the search ends when it is reached.
        tolerance: difference of two values that is rounding.
    """
    n, constrained = len(first), before.any()
    orders, values = np.empty((POPULATION, n), dtype=np.int64), np.empty(POPULATION)
    best, best_value = first.copy(), order_gain(gains, first)
    wish, alive, idle = first.copy(), 0, 0
    while moves > 0 and best_value < bound - tolerance:
        if alive == POPULATION:
            _recombine(orders, wish, rng)
        child = extended(before, wish) if constrained else wish.copy()
        moves -= climb(walls, child, moves, tolerance)
        value = order_gain(gains, child)
        if value > best_value + tolerance:
            best, best_value = child.copy(), value
        if alive < POPULATION:
            orders[alive], values[alive] = child, value
            alive += 1
            _shuffle(wish, rng)
        elif _settled(orders, values, child, value, tolerance):
            idle = 0
        else:
            idle += 1
        if idle == PATIENCE:
            orders[0], values[0] = best, best_value
            alive, idle = 1, 0
            _shuffle(wish, rng)
    return best


@numba.njit(nogil=True, cache=True)
def climb(walls: Any, order: Any, moves: int, tolerance: float) -> int:
    """Put rows in their best places, in turn, until none gains; the moves it took, at most `moves`."""
    n, made, at_rest, row = len(order), 0, 0, 0
    places = np.empty(n, dtype=np.int64)
    for place in range(n):
        places[order[place]] = place
    while at_rest < n and made < moves:
        place = places[row]
        to = _best_place(walls[row], order, place, tolerance)
        made += 1
        at_rest += 1
        if to != place:
            at_rest = 1
            step = 1 if to > place else -1
            for other in range(place, to, step):
                order[other] = order[other + step]
                places[order[other]] = other
            order[to], places[row] = row, to
        row = row + 1 if row + 1 < n else 0
    return made


@numba.njit(nogil=True, cache=True)
def _best_place(passes: Any, order: Any, place: int, tolerance: float) -> int:
    """Where a row gains most; its own place where nothing is gained. `passes` is its row of `walls`."""
    most, to, gain = tolerance, place, 0.0
    for earlier in range(place - 1, -1, -1):
        gain += passes[order[earlier]]
        if gain > most:
            most, to = gain, earlier
    gain = 0.0
    for later in range(place + 1, len(order)):
        gain -= passes[order[later]]
        if gain > most:
            most, to = gain, later
    return to


@numba.njit(nogil=True, cache=True)
def order_gain(gains: Any, order: Any) -> float:
    """Sum of gains[i, j] over all i before j."""
    total = 0.0
    for place in range(len(order)):
        row = gains[order[place]]
        for later in range(place + 1, len(order)):
            total += row[order[later]]
    return total


@numba.njit(nogil=True, cache=True)
def _recombine(orders: Any, child: Any, rng: Any) -> None:
    """One order, in which the items of half of its places stand as they do in another (Syswerda 1991)."""
    n = len(child)
    one = int(rng.random() * len(orders))
    other = (one + 1 + int(rng.random() * (len(orders) - 1))) % len(orders)
    moved, places, count = np.zeros(n, dtype=np.bool_), np.empty(n, dtype=np.int64), 0
    for place in range(n):
        item = orders[one, place]
        child[place] = item
        if rng.random() < 0.5:
            moved[item], places[count] = True, place
            count += 1
    filled = 0
    for item in orders[other]:
        if moved[item]:
            child[places[filled]] = item
            filled += 1


@numba.njit(nogil=True, cache=True)
def _settled(orders: Any, values: Any, child: Any, value: float, tolerance: float) -> bool:
    """Whether a child took the worst order's place: better than that, and worth what no other is."""
    worst = np.argmin(values)
    if value <= values[worst] + tolerance or np.abs(values - value).min() <= tolerance:
        return False
    orders[worst], values[worst] = child, value
    return True


@numba.njit(nogil=True, cache=True)
def _shuffle(items: Any, rng: Any) -> None:
    for place in range(len(items) - 1, 0, -1):
        other = int(rng.random() * (place + 1))
        items[place], items[other] = items[other], items[place]
