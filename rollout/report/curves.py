"""Series made small enough to draw: means of neighbours, running means, how busy each part of a run was.

Pure functions over numbers. NaN stands for a value that is not there and enters no mean.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from rollout.audit import Interval


def binned(values: Sequence[float], each: int) -> list[float]:
    """Means of `each` neighbours, the last of what is left; the values themselves for 1."""
    if each == 1:
        return list(values)
    return [mean(values[start : start + each]) for start in range(0, len(values), each)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each; of as many as there are at the beginning."""
    numbers = np.asarray(values, dtype=float)
    is_there = np.isfinite(numbers)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_there, numbers, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_there)])
    stops = np.arange(1, len(numbers) + 1)
    starts = np.maximum(0, stops - window)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
        return ((sums[stops] - sums[starts]) / (counts[stops] - counts[starts])).tolist()


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are there; NaN when none is."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def occupancy(spans: Iterable[Interval], begin: float, end: float, parts: int) -> list[float]:
    """The share of each of `parts` equal parts of `begin..end` that `spans`, disjoint, cover."""
    width = (end - begin) / parts
    covered_s = [0.0] * parts
    for start, stop in spans:
        start_part = min(parts - 1, max(0, int((start - begin) / width)))
        stop_part = min(parts - 1, max(0, int((stop - begin) / width)))
        for part in range(start_part, stop_part + 1):
            left = begin + part * width
            covered_s[part] += max(0.0, min(stop, left + width) - max(start, left))
    return [min(1.0, seconds / width) for seconds in covered_s]
