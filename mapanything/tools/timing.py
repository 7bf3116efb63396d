"""Timing one thing against another in the same run, for the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result. `ratio` is how many times ours is as fast; `goal` what it should be at least."""

    name: str
    ours_ms: float
    reference: str
    reference_ms: float
    goal: float

    @property
    def ratio(self) -> float:
        return self.reference_ms / self.ours_ms


def compare(
    name: str, ours: Callable[[], object], reference: str, theirs: Callable[[], object], goal: float, rounds: int = 9
) -> Figure:
    """Times both in turns, a warm-up of each first. Returns medians."""
    ours()
    theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, into in ((ours, times[0]), (theirs, times[1])):
            start = time.perf_counter()
            function()
            into.append(1000 * (time.perf_counter() - start))
    return Figure(name, statistics.median(times[0]), reference, statistics.median(times[1]), goal)
