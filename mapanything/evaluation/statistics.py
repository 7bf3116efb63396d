"""Statistics over many frames: mean, median, spread, and how sure the mean is."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from mapanything.evaluation.metrics import NAN

RESAMPLES = 1000
CONFIDENCE = 0.95
_AT_ONCE = 1 << 22  # numbers drawn in one step


@dataclass(frozen=True, slots=True)
class Statistics:
    """The finite values in short: how many, mean, median, standard deviation (of the population), quartiles, and the bounds of
    the mean's bootstrap interval. NaN where there is none."""

    count: int
    mean: float
    median: float
    std: float
    p25: float
    p75: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """The values for JSON, which has no NaN."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def describe(values: ArrayLike, seed: int, name: str) -> Statistics:
    """Statistics of values (N,); what is not finite is left out. The same seed and name give the same interval."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Statistics(0, *[NAN] * 7)
    p25, median, p75 = np.percentile(values, [25, 50, 75])
    low, high = bootstrap_interval(values, seed, name)
    return Statistics(len(values), float(values.mean()), float(median), float(values.std()), float(p25), float(p75), low, high)


def bootstrap_interval(values: ArrayLike, seed: int, name: str = "") -> tuple[float, float]:
    """Percentile bootstrap (Efron 1979) of the mean of values (N,), 95 %: N of them drawn with replacement, 1000 times.

    Frames are drawn, not scenarios: frames of one drive resemble each other, so over few drives the interval is too narrow.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return NAN, NAN  # one scene says nothing of how another would differ
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    step = max(1, _AT_ONCE // len(values))
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), (min(step, RESAMPLES - start), len(values)))].mean(axis=1)
            for start in range(0, RESAMPLES, step)
        ]
    )
    low, high = np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)
