"""The gate's rules, and the audit: it trips soon after a shift, and rarely while the promise is kept."""

from __future__ import annotations

import numpy as np
import pytest

from rsd_policy.engine.gate import Audit, Gate
from rsd_policy.errors import RSDError
from rsd_policy.observation import GRIPPER


def chunk(gripper: float = 1.0) -> np.ndarray:
    actions = np.zeros((8, 7), dtype=np.float32)
    actions[:, GRIPPER] = gripper
    return actions


def test_probability_at_the_threshold_is_let_through() -> None:
    gate = Gate(threshold=0.75, alpha=0.1, steps=4)
    probability = np.array([0.9, 0.9, 0.9, 0.75, 0.1, 0.1, 0.1, 0.1], dtype=np.float32)
    assert gate.lets_through(probability)
    probability[3] = np.nextafter(np.float32(0.75), np.float32(0))
    assert not gate.lets_through(probability)


def test_first_chunk_and_gripper_changes_are_not_eligible() -> None:
    gate = Gate(threshold=0.0, alpha=0.1, steps=4)
    last = chunk()[0]
    assert gate.eligible(chunk(), last)
    assert not gate.eligible(chunk(), None)
    assert not gate.eligible(chunk(-1.0), last)
    changes = chunk()
    changes[4:, GRIPPER] = -1.0  # after the steps that the gate decides about
    assert gate.eligible(changes, last)
    changes[3, GRIPPER] = -1.0
    assert not gate.eligible(changes, last)
    from_open = Gate(threshold=0.0, alpha=0.1, steps=4, start_gripper=-1.0)
    assert from_open.eligible(chunk(-1.0), None) and not from_open.eligible(chunk(), None)
    assert from_open.eligible(chunk(), last) and not from_open.eligible(chunk(-1.0), last)
    free = Gate(threshold=0.0, alpha=0.1, steps=4, gripper_rule=False)
    assert free.eligible(changes, last) and free.eligible(chunk(), None)


def test_audit_is_due_every_nth_skip() -> None:
    audit = Audit(alpha=0.1, every=4)
    assert [audit.due() for _ in range(8)] == [False, False, False, True] * 2


def audited_until_tripped(audit: Audit, rate: float, chunks: int, rng: np.random.Generator) -> int | None:
    """Skipped chunks, all of which deviate at `rate`, until the audit trips; None when it does not."""
    for skipped in range(1, chunks + 1):
        if audit.due():
            audit.record(bool(rng.random() < rate))
            if audit.tripped:
                return skipped
    return None


@pytest.mark.parametrize(("alpha", "rate", "every"), [(0.1, 0.3, 10), (0.1, 0.6, 5), (0.05, 0.2, 10), (0.2, 0.5, 1)])
@pytest.mark.parametrize("good_chunks", [0, 2000])
def test_shift_is_noticed_within_the_promised_number_of_chunks(
    alpha: float, rate: float, every: int, good_chunks: int
) -> None:
    rng = np.random.default_rng(0)
    promised = Audit.notices_in(alpha, rate, every, power=0.95)
    noticed = []
    for _ in range(200):
        audit = Audit(alpha, every)
        audited_until_tripped(audit, alpha / 4, good_chunks, rng)
        noticed.append(audit.tripped or audited_until_tripped(audit, rate, promised, rng) is not None)
    assert np.mean(noticed) >= 0.93  # 0.95 less two standard errors of 200 repetitions


def test_false_alarms_are_rare_while_the_promise_is_just_kept() -> None:
    rng = np.random.default_rng(1)
    checks = [audited_until_tripped(Audit(0.1, every=1), 0.1, 1000, rng) or 1000 for _ in range(100)]
    assert np.mean(checks) > Audit.patience  # the mean time to a false alarm, cut at 1000 checks


def test_audit_never_trips_without_deviation_nor_without_a_promise() -> None:
    clean, draft_only = Audit(0.02, every=1), Audit(1.0, every=1)
    for _ in range(3000):
        clean.record(False)
        draft_only.record(True)
    assert not clean.tripped and not draft_only.tripped
    assert (clean.checked, clean.deviated) == (3000, 0)


def test_rate_that_is_no_broken_promise_is_refused() -> None:
    for rate in (0.05, 0.1, 1.1):
        with pytest.raises(RSDError, match="alpha"):
            Audit.notices_in(0.1, rate, 10)
