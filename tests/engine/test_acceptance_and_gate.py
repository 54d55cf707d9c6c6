"""The accept rule at its boundaries, the gate, and the audit's statistics."""

from __future__ import annotations

import numpy as np
import pytest

from rsd_policy.codec.rfsq import GRIPPER
from rsd_policy.engine.acceptance import Acceptance, compare
from rsd_policy.engine.gate import Audit, Gate, gate_score

RULE = Acceptance(threshold=0.7, tolerance=np.full(6, 0.1, dtype=np.float32))


def chunk(value: float = 0.0) -> np.ndarray:
    actions = np.full((8, 7), value, dtype=np.float32)
    actions[:, GRIPPER] = 1.0
    return actions


def tokens(levels: int = 3) -> np.ndarray:
    return np.ones((levels, 8, 7), dtype=np.int64)


def test_equal_chunks_are_accepted() -> None:
    result = compare(tokens(), chunk(), tokens(8), chunk(), 8, RULE)
    assert result.accepted and result.token_agreement == (1.0, 1.0, 1.0)


def test_deviation_at_the_tolerance_is_accepted_and_beyond_it_rejected() -> None:
    tolerance = float(RULE.tolerance[0])
    assert compare(tokens(), chunk(tolerance), tokens(8), chunk(), 8, RULE).accepted
    beyond = float(np.nextafter(RULE.tolerance[0], np.float32(1)))
    result = compare(tokens(), chunk(beyond), tokens(8), chunk(), 8, RULE)
    assert not result.accepted and not result.within_tolerance


@pytest.mark.parametrize(("different", "accepted"), [(50, True), (51, False)])
def test_token_agreement_at_the_threshold(different: int, accepted: bool) -> None:
    # 168 tokens over three levels; 118 of 168 = 0.702, 117 of 168 = 0.696
    final = tokens(8)
    final[:3].reshape(-1)[:different] = 0
    assert compare(tokens(), chunk(), final, chunk(), 8, RULE).accepted is accepted


def test_only_executed_steps_count() -> None:
    draft = chunk()
    draft[5, 0] = 1.0
    assert compare(tokens(), draft, tokens(8), chunk(), 5, RULE).accepted
    assert not compare(tokens(), draft, tokens(8), chunk(), 6, RULE).accepted


def test_another_gripper_command_is_rejected() -> None:
    draft = chunk()
    draft[3, GRIPPER] = -1.0
    assert not compare(tokens(), draft, tokens(8), chunk(), 8, RULE).within_tolerance


def test_gate_threshold_and_score() -> None:
    margins = np.full((3, 8, 7), 2.0, dtype=np.float32)
    assert gate_score(margins, 8) == 2.0
    assert Gate(2.0, 0.1).lets_through(margins, chunk(), 1.0, 8)
    assert not Gate(2.01, 0.1).lets_through(margins, chunk(), 1.0, 8)
    assert not Gate(0.0, 0.1).lets_through(margins, chunk(), None, 8)
    assert not Gate(0.0, 0.1).lets_through(margins, chunk(), -1.0, 8)
    margins[:, :, 0] = 1e6
    assert gate_score(margins, 8) == pytest.approx((2.0 * 5 + 4.0) / 6)


def test_audit_trips_under_a_broken_promise_and_rarely_under_a_kept_one() -> None:
    rng = np.random.default_rng(0)

    def tripped_after(rate: float, checks: int) -> bool:
        audit = Audit(alpha=0.1, every=1)
        for _ in range(checks):
            audit.record(bool(rng.random() < rate))
        return audit.tripped

    assert np.mean([tripped_after(0.5, 30) for _ in range(300)]) > 0.98
    assert np.mean([tripped_after(0.1, 30) for _ in range(300)]) < 0.1
    assert not tripped_after(0.0, 1000)


def test_audit_is_due_every_nth_skip() -> None:
    audit = Audit(alpha=0.1, every=4)
    assert [audit.due() for _ in range(8)] == [False, False, False, True] * 2
