"""Timing one thing against another in the same run, for the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result. `ratio` is how many times ours is as fast, of the medians; `goal` what it should be at least."""

    name: str
    ours_ms: float
    reference: str
    reference_ms: float
    goal: float
    spread: tuple[float, float] | None = None  # the least and the largest ratio of a round, where there were several

    @property
    def ratio(self) -> float:
        return self.reference_ms / self.ours_ms


def spread_of(ratios: Sequence[float]) -> tuple[float, float] | None:
    return (min(ratios), max(ratios)) if len(ratios) > 1 else None


def with_spread(ratio: float, spread: Sequence[float] | None) -> str:
    """`1.25 (1.10..1.31)`: of all rounds, and of the worst and the best one."""
    return f"{ratio:.2f}" + (f" ({spread[0]:.2f}..{spread[1]:.2f})" if spread else "")


def compare(
    name: str, ours: Callable[[], object], reference: str, theirs: Callable[[], object], goal: float, rounds: int = 9
) -> Figure:
    """Times both in turns, a warm-up of each first. Returns medians, and the spread of the rounds' ratios."""
    return compare_fastest(name, ours, {reference: theirs}, goal, rounds)


def compare_fastest(
    name: str, ours: Callable[[], object], references: Mapping[str, Callable[[], object]], goal: float, rounds: int = 9
) -> Figure:
    """`compare` with several ways of doing the same, all in turns; the fastest of them is the reference."""
    functions = (ours, *references.values())
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, into in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            into.append(1000 * (time.perf_counter() - start))
    own, others = times[0], dict(zip(references, times[1:], strict=True))
    fastest = min(others, key=lambda reference: statistics.median(others[reference]))
    spread = spread_of([other / mine for mine, other in zip(own, others[fastest], strict=True)])
    return Figure(name, statistics.median(own), fastest, statistics.median(others[fastest]), goal, spread)
