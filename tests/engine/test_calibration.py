"""The calibrated threshold keeps its promise over many calibrations, whatever the dependence within an episode."""

from __future__ import annotations

import numpy as np
import pytest

from rsd_policy.engine.calibration import Chunks, Curve, episodes_needed, thresholds_from, upper_bounds
from rsd_policy.engine.gate import Gate
from rsd_policy.errors import CheckpointError, RSDError

CHUNKS = 10


def synthetic(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores and deviations [episodes, ..., CHUNKS]. Chunks of an episode are alike: in one of six the scores mislead.
    The deviation rate is not monotone in the score: the highest scores deviate more often than high ones."""
    episode = (*shape, 1)
    score = 0.4 * rng.random(episode) + 0.6 * rng.random((*shape, CHUNKS))
    rate = np.where(rng.random(episode) < 1 / 6, 0.35, 0.0) * (1.2 - score) + 0.3 * np.clip(0.6 - score, 0, 1)
    return score, rng.random(score.shape) < rate + 0.05 * (score > 0.9)


def counts(score: np.ndarray, deviates: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Skipped and deviating chunks [episodes, ..., G]."""
    skips = [score >= threshold for threshold in thresholds]
    return (
        np.stack([s.sum(axis=-1) for s in skips], axis=-1).astype(float),
        np.stack([(s & deviates).sum(axis=-1) for s in skips], axis=-1).astype(float),
    )


def curve(bounds: list[float]) -> Curve:
    count = len(bounds)
    return Curve([0.9 - 0.1 * i for i in range(count)], [0.1 * i for i in range(count)], bounds, bounds, bounds, 0.95)


def test_promise_holds_in_at_least_the_stated_share_of_1000_calibrations() -> None:
    rng = np.random.default_rng(0)
    confidence = 0.9
    thresholds = thresholds_from(synthetic((300,), rng)[0].ravel(), count=9)
    skipped, deviated = counts(*synthetic((50_000,), rng), thresholds)
    rates = np.divide(deviated, skipped, out=np.zeros_like(skipped), where=skipped > 0)
    truth = rates.sum(axis=0) / (skipped > 0).sum(axis=0)
    bounds = upper_bounds(*counts(*synthetic((150, 1000), rng), thresholds), confidence)
    for alpha in (0.04, 0.06, 0.08):
        assert truth[0] < alpha < truth[-1]  # some thresholds keep the promise, and some do not
        chosen = [curve(list(row)).choose(alpha) for row in bounds]
        broken = np.mean([index is not None and truth[index] > alpha for index in chosen])
        assert broken <= 1 - confidence
    assert np.mean([index is not None for index in chosen]) > 0.5  # and not by never opening the gate


def test_bound_of_a_single_threshold_covers_the_rate_at_the_worst_dependence() -> None:
    # all chunks of an episode deviate, or none: an episode is worth one chunk
    rng = np.random.default_rng(1)
    rate, episodes = 0.1, 60
    deviating = (rng.random((episodes, 1000)) < rate).astype(np.float64)
    bounds = upper_bounds(np.full(deviating.shape, 12.0), 12.0 * deviating, confidence=0.9)
    assert (bounds < rate).mean() <= 0.1
    assert np.median(bounds) < 0.3


def test_bound_holds_for_tasks_that_differ() -> None:
    # half of the episodes deviate in 2 % of chunks, half in 18 %: visited in turn, not drawn
    rng = np.random.default_rng(2)
    rates = np.tile([0.02, 0.18], 40)[:, None]
    deviated = rng.binomial(8, np.broadcast_to(rates, (80, 1000))).astype(float)
    assert (upper_bounds(np.full(deviated.shape, 8.0), deviated, confidence=0.9) < 0.1).mean() <= 0.1


def test_bound_falls_with_evidence_and_says_nothing_without() -> None:
    def bound(episodes: int, deviated: float) -> float:
        return float(upper_bounds(np.full((episodes, 1), 5.0), np.full((episodes, 1), deviated))[0])

    assert bound(400, 0.0) < bound(100, 0.0) < bound(20, 0.0) < 0.5
    assert bound(100, 0.0) < bound(100, 1.0) < bound(100, 2.0)
    assert bound(5, 5.0) == 1.0
    assert upper_bounds(np.zeros((50, 1)), np.zeros((50, 1)))[0] == 1.0


def test_episodes_needed_is_the_least_number() -> None:
    for alpha in (0.05, 0.1, 0.2):
        count = episodes_needed(alpha)
        clean = np.zeros((count, 1))
        assert upper_bounds(clean + 3, clean)[0] <= alpha < upper_bounds(clean[1:] + 3, clean[1:])[0]


def test_first_failure_ends_the_sequence() -> None:
    assert curve([0.03, 0.04, 0.06, 0.04]).choose(0.05) == 1  # the last would pass, but was not reached
    assert curve([0.06, 0.01]).choose(0.05) is None
    assert curve([0.01, 0.05]).choose(0.05) == 1


def test_ineligible_chunks_are_not_skipped_and_count_as_chunks() -> None:
    chunks = Chunks(
        episode=np.array([0, 0, 1, 1]),
        score=np.array([0.9, 0.9, 0.9, 0.1]),
        eligible=np.array([True, False, True, True]),
        deviates=np.array([False, True, True, True]),
    )
    measured = Curve.measure(chunks, np.array([0.5]))
    assert measured.skip_rate == [0.5]
    assert measured.deviation_rate == measured.chunk_deviation_rate == [0.5]


def test_thresholds_run_from_strict_to_lenient() -> None:
    scores = np.random.default_rng(0).random(1000)
    thresholds = thresholds_from(scores)
    assert (np.diff(thresholds) <= 0).all()
    assert (scores >= thresholds[0]).mean() == pytest.approx(0.2, abs=0.01)
    assert thresholds[-1] == scores.min()


def entry(bounds: list[float]) -> dict[str, object]:
    return {"alpha": 0.1, "steps": 8, "curve": curve(bounds).to_manifest()}


def test_gate_takes_the_threshold_of_the_wanted_alpha() -> None:
    gate = Gate.from_manifest(entry([0.04, 0.08, 0.3]))
    assert (gate.threshold, gate.alpha, gate.steps) == (pytest.approx(0.8), 0.1, 8)
    assert Gate.from_manifest(entry([0.04, 0.08, 0.3]), alpha=0.05).threshold == pytest.approx(0.9)


def test_gate_refuses_what_was_not_calibrated() -> None:
    with pytest.raises(CheckpointError, match="rsd calibrate"):
        Gate.from_manifest(None)
    with pytest.raises(CheckpointError, match="rsd calibrate"):  # of the first releases
        Gate.from_manifest({"score": "draft_margin", "alpha": 0.1, "threshold": 3.6})
    with pytest.raises(CheckpointError, match=r"bounded by 0\.040"):
        Gate.from_manifest(entry([0.04, 0.08]), alpha=0.01)
    with pytest.raises(RSDError, match="alpha"):
        Gate.from_manifest(entry([0.04]), alpha=1.5)
    with pytest.raises(CheckpointError, match="curve"):
        Gate.from_manifest({"alpha": 0.1, "steps": 8, "curve": {"threshold": [0.5]}})
