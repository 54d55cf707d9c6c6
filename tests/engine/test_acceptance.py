"""The accept rule at its boundaries."""

from __future__ import annotations

import numpy as np
import pytest

from rsd_policy.engine.acceptance import Acceptance, compare, steps_within
from rsd_policy.observation import GRIPPER

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


@pytest.mark.parametrize("outside", range(9))
def test_accepted_steps_are_those_before_the_first_outside(outside: int) -> None:
    draft = chunk()
    draft[outside:, 2] = 0.2
    result = compare(tokens(), draft, tokens(8), chunk(), 8, RULE)
    assert result.accepted_steps == outside
    assert result.within_tolerance is (outside == 8)


def test_steps_after_the_first_outside_do_not_count() -> None:
    draft = chunk()
    draft[2, 0] = 0.2
    draft[5, GRIPPER] = -1.0
    stacked = np.stack([draft, chunk()])
    assert steps_within(stacked, np.stack([chunk(), chunk()]), RULE.tolerance).tolist() == [2, 8]
    assert compare(tokens(), draft, tokens(8), chunk(), 2, RULE).accepted_steps == 2
    assert compare(tokens(), draft, tokens(8), chunk(), 2, RULE).accepted
