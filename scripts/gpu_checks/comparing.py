"""Is a result as close to float64 as it must be?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gpu_checks.findings import Finding, at_most
from gpu_checks.runs import wait

# A device adds in another order than a CPU, and so may be this many times as far from float64.
TIMES = 4


def distance(result: Tensor, exact: Tensor) -> float:
    """Return |result - exact| / |exact|, Euclidean norms in float64."""
    result, exact = result.detach().double().cpu().flatten(), exact.detach().double().cpu().flatten()
    return float((result - exact).norm() / exact.norm().clamp(min=torch.finfo(torch.float64).tiny))


def as_near(what: str, result: Tensor, other: Tensor, exact: Tensor, dtype: torch.dtype) -> Finding:
    """Check that the result is at most TIMES as far from float64 as another computation, plus a rounding."""
    limit = TIMES * distance(other, exact) + torch.finfo(dtype).eps
    return at_most(what, distance(result, exact), limit, "of float64")


def median_seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Return the median of a few timings, after one to warm up."""
    work()
    found = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)
