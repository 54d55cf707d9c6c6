"""The accept rule at its boundaries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rsd_policy.codec import RFSQCodec
from rsd_policy.engine.acceptance import Acceptance, compare, steps_within
from rsd_policy.observation import GRIPPER

CARRIES = RFSQCodec(torch.ones(7)).carries.numpy()
RULE = Acceptance(threshold=0.7, tolerance=np.full(6, 0.1, dtype=np.float32), carries=CARRIES)


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


@pytest.mark.parametrize(("different", "accepted"), [(45, True), (46, False)])
def test_token_agreement_at_the_threshold(different: int, accepted: bool) -> None:
    # 152 tokens that carry something over three levels; 107 of 152 = 0.704, 106 of 152 = 0.697
    final = tokens(8)
    rows = np.argwhere(np.broadcast_to(CARRIES[:3, None], (3, 8, 7)))[:different]
    final[tuple(rows.T)] = 0
    assert compare(tokens(), chunk(), final, chunk(), 8, RULE).accepted is accepted


def test_the_grippers_constant_digits_do_not_count() -> None:
    """From L1 on a gripper's digit is 0 for every action: a draft that was wrong in all else agreed with 1 in 7."""
    draft, final = tokens(), tokens(8)
    final[:, :, :GRIPPER] = 0
    final[0, :, GRIPPER] = 0
    result = compare(draft, chunk(), final, chunk(), 8, RULE)
    assert result.token_agreement == (0.0, 0.0, 0.0)
    draft[1:, :, GRIPPER] = 2  # what carries nothing cannot differ either
    assert compare(draft, chunk(), tokens(8), chunk(), 8, RULE).token_agreement == (1.0, 1.0, 1.0)


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
