"""Intervals and tests against published values, scipy, and their own promise (coverage)."""

from __future__ import annotations

import functools
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from rsd_policy.evaluation import statistics
from rsd_policy.evaluation.statistics import (
    latency_summary,
    mcnemar_exact,
    mean_interval,
    paired_difference_interval,
    paired_ratio,
    wilson_interval,
)


def test_wilson_of_a_published_count() -> None:
    # Newcombe 1998 (two-sided intervals for the single proportion), table I, score method: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_scipy_is_not_loaded_before_there_is_something_to_count() -> None:
    """It takes over a second, which every start of `rsd eval` and of the engine would pay."""
    code = (
        "import sys; import rsd_policy, rsd_policy.reports.summary, rsd_policy.engine.inference; "
        "sys.exit('scipy.stats' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wilson_without_trials_knows_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="must not be greater"):
        wilson_interval(5, 4)


@pytest.mark.parametrize(
    ("only_a", "only_b", "tail"), [(0, 1, 1), (1, 0, 1), (0, 6, 1), (0, 5, 1), (5, 2, 29), (3, 3, 42)]
)
def test_mcnemar_is_twice_the_smaller_tail_of_the_coin(only_a: int, only_b: int, tail: int) -> None:
    # 5 against 2: C(7,0) + C(7,1) + C(7,2) = 29
    expected = min(1.0, 2 * tail / 2 ** (only_a + only_b))
    assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, abs=1e-12)
    assert mcnemar_exact(0, 0) == 1.0


def test_paired_interval_is_antisymmetric_and_holds_the_estimate() -> None:
    for both, only_a, only_b, neither in itertools.product((0, 1, 7, 20), repeat=4):
        n = both + only_a + only_b + neither
        if n == 0:
            assert paired_difference_interval(0, 0, 0, 0) == (-1.0, 1.0)
            continue
        low, high = paired_difference_interval(both, only_a, only_b, neither)
        swapped = paired_difference_interval(both, only_b, only_a, neither)
        assert swapped == pytest.approx((-high, -low), abs=1e-12)
        assert -1 <= low <= (only_b - only_a) / n <= high <= 1


@pytest.mark.parametrize(
    "rates", [(0.9, 0.04, 0.03, 0.03), (0.6, 0.1, 0.2, 0.1), (0.25, 0.25, 0.25, 0.25), (0.8, 0.0, 0.1, 0.1)]
)
def test_paired_interval_covers_the_truth(
    rates: tuple[float, float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact coverage for 30 pairs, summed over every table: near the promised 95 %."""
    monkeypatch.setattr(statistics, "wilson_interval", functools.cache(wilson_interval))  # 31 of them, 40,920 times
    n, truth, covered = 30, rates[2] - rates[1], 0.0
    for a, b in itertools.product(range(n + 1), repeat=2):
        for c in range(n + 1 - a - b):
            counts = (a, b, c, n - a - b - c)
            if counts[3] < 0 or any(k and not p for k, p in zip(counts, rates, strict=True)):
                continue
            low, high = paired_difference_interval(*counts)
            if low <= truth <= high:
                log = math.lgamma(n + 1) + sum(
                    k * math.log(p) - math.lgamma(k + 1) for k, p in zip(counts, rates, strict=True) if p
                )
                covered += math.exp(log)
    assert 0.925 <= covered <= 1.0


def test_latency_summary_of_known_values() -> None:
    assert latency_summary([]) is None
    values = list(range(101))
    assert latency_summary(values) == {"mean": 50.0, "p50": 50.0, "p95": 95.0, "p99": 99.0}


def test_ratio_of_means_weighs_values_not_episodes() -> None:
    ratio = paired_ratio([[100.0] * 3, [100.0]], [[50.0], [20.0, 20.0]])
    assert ratio is not None
    assert ratio.value == pytest.approx(100 / 30)
    assert (ratio.low, ratio.high) == (None, None)  # two episodes say nothing about the spread


def test_ratio_interval_shrinks_with_more_episodes_and_covers_the_truth() -> None:
    rng = np.random.default_rng(1)

    def sample(episodes: int) -> tuple[list, list]:
        slow = [rng.normal(80, 8, 12) * rng.uniform(0.8, 1.2) for _ in range(episodes)]
        return slow, [rng.normal(40, 4, 12) * rng.uniform(0.8, 1.2) for _ in range(episodes)]

    few, many = paired_ratio(*sample(5)), paired_ratio(*sample(200))
    assert few is not None
    assert many is not None
    assert None not in (few.low, few.high, many.low, many.high)
    assert many.low < 2.0 < many.high
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low


def test_ratio_of_nothing_is_nothing() -> None:
    assert paired_ratio([[]], [[1.0]]) is None
    assert paired_ratio([], []) is None


def test_a_mean_over_groups_has_an_interval_as_wide_as_the_groups_differ() -> None:
    alike = mean_interval([[1.0, 0.0]] * 10)
    assert alike == (0.5, 0.5, 0.5)
    mean, low, high = mean_interval([[1.0, 1.0]] * 5 + [[0.0, 0.0]] * 5)
    assert mean == 0.5 and 0.1 < low < 0.3 and 0.7 < high < 0.9
    mean, low, high = mean_interval([[1.0], [0.0, 0.0]])
    assert mean == pytest.approx(1 / 3) and math.isnan(low) and math.isnan(high)
