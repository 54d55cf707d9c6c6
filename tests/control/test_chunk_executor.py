"""The hazards between a chunk and the arm: late chunks, NaN, out-of-range values, a policy that went silent."""

from __future__ import annotations

import numpy as np
import pytest

from rsd_policy.control.chunk_executor import ChunkExecutor
from rsd_policy.errors import ActionError, NonFiniteError

DT = 0.05


def ramp(steps: int = 8, start: float = 0.0) -> np.ndarray:
    """A chunk whose every value tells its step: row i is start + i / 100, gripper closed."""
    chunk = np.tile((start + np.arange(steps, dtype=np.float32) / 100)[:, None], (1, 7)).astype(np.float32)
    chunk[:, 6] = 1.0
    return chunk


def test_lockstep_hands_out_the_chunk_step_by_step_and_says_when_an_observation_is_due():
    executor = ChunkExecutor()
    for first in (0, 8, 400):
        chunk = ramp(start=first / 1000)
        assert executor.next_action(first * DT) is None
        assert executor.set_chunk(chunk, stamp=first * DT, verified=True)
        for i in range(8):
            command = executor.next_action((first + i) * DT)
            assert command is not None
            assert np.array_equal(command.values, chunk[i])
            assert command.values.dtype == np.float32
            assert command.remaining == 7 - i
        assert executor.next_action((first + 8) * DT) is None


def test_only_execute_steps_of_a_chunk_are_executed():
    executor = ChunkExecutor(execute_steps=3)
    executor.set_chunk(ramp(), stamp=0.0, verified=True)
    commands = [executor.next_action(i * DT) for i in range(4)]
    assert [c.remaining for c in commands[:3]] == [2, 1, 0]
    assert commands[3] is None


def test_a_short_chunk_is_executed_whole():
    executor = ChunkExecutor()
    executor.set_chunk(ramp(1), stamp=2.0, verified=True)
    command = executor.next_action(2.0)
    assert command is not None and command.remaining == 0
    assert executor.next_action(2.05) is None


def test_steps_already_past_are_skipped_when_the_chunk_arrives_late():
    executor = ChunkExecutor()
    chunk = ramp()
    executor.set_chunk(chunk, stamp=10.0, verified=True)
    command = executor.next_action(10.0 + 3 * DT + 0.01)
    assert np.array_equal(command.values, chunk[3])
    assert command.remaining == 4


def test_when_time_goes_back_the_new_chunk_counts_and_a_late_one_still_does_not():
    """As when a bag starts again: everything that comes is older than the chunk of before."""
    executor = ChunkExecutor()
    assert executor.set_chunk(ramp(start=0.5), stamp=100.0, verified=True)
    assert not executor.set_chunk(ramp(), stamp=99.6, verified=True), "late by one chunk"
    assert executor.next_action(100.0).values[0] == np.float32(0.5)
    assert executor.set_chunk(ramp(start=0.1), stamp=2.0, verified=False)
    assert executor.next_action(2.0).values[0] == np.float32(0.1)
    assert executor.set_chunk(ramp(start=0.2), stamp=2.4, verified=True), "time goes on from there"
    assert executor.next_action(2.4).values[0] == np.float32(0.2)


def test_a_chunk_older_than_its_own_length_moves_nothing():
    executor = ChunkExecutor()
    executor.set_chunk(ramp(), stamp=10.0, verified=True)
    assert executor.next_action(10.0 + 8 * DT) is None


def test_a_chunk_of_the_future_moves_nothing_yet():
    executor = ChunkExecutor()
    executor.set_chunk(ramp(), stamp=10.0, verified=True)
    assert executor.next_action(9.9) is None


def test_the_verified_form_takes_over_in_the_middle_of_the_provisional_one():
    executor = ChunkExecutor()
    provisional, verified = ramp(), ramp(start=0.5)
    executor.set_chunk(provisional, stamp=1.0, verified=False)
    first = executor.next_action(1.0)
    assert np.array_equal(first.values, provisional[0]) and not first.verified
    executor.set_chunk(verified, stamp=1.0, verified=True)
    second = executor.next_action(1.0 + DT)
    assert np.array_equal(second.values, verified[1]) and second.verified


def test_outdated_chunks_do_not_replace_newer_ones():
    executor = ChunkExecutor()
    executor.set_chunk(ramp(start=0.5), stamp=2.0, verified=True)
    assert not executor.set_chunk(ramp(), stamp=1.9, verified=True)
    assert not executor.set_chunk(ramp(), stamp=2.0, verified=False)
    assert executor.next_action(2.0).values[0] == np.float32(0.5)


def test_values_beyond_the_limits_are_clipped_and_reported():
    executor = ChunkExecutor(limits=[1, 1, 0.25, 1, 1, 1])
    executor.set_chunk(np.full((2, 7), -3.0), stamp=0.0, verified=True)
    command = executor.next_action(0.0)
    assert command.values.tolist() == [-1, -1, -0.25, -1, -1, -1, -1]
    assert command.clipped
    executor.set_chunk(np.zeros((1, 7)), stamp=0.05, verified=True)
    assert not executor.next_action(0.05).clipped


def test_a_limit_of_the_arm_does_not_close_the_hand_halfway():
    """0.5 used to send half a grasp, and to count every command as clipped."""
    executor = ChunkExecutor(limits=0.5)
    executor.set_chunk([[0.1] * 6 + [1.0]], stamp=0.0, verified=True)
    command = executor.next_action(0.0)
    assert command.values[6] == 1.0
    assert not command.clipped


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_and_the_chunk_before_it_stops_as_well(bad):
    executor = ChunkExecutor()
    executor.set_chunk(ramp(), stamp=0.0, verified=True)
    chunk = ramp()
    chunk[5, 2] = bad
    with pytest.raises(NonFiniteError, match="step 5, degree of freedom 2"):
        executor.set_chunk(chunk, stamp=0.1, verified=True)
    assert executor.next_action(0.05) is None


@pytest.mark.parametrize("shape", [(0, 7), (8, 6), (7,), (1, 8, 7)])
def test_wrong_shapes_are_refused_and_the_current_chunk_goes_on(shape):
    executor = ChunkExecutor()
    executor.set_chunk(ramp(), stamp=0.0, verified=True)
    with pytest.raises(ActionError, match="expected shape"):
        executor.set_chunk(np.zeros(shape), stamp=0.1, verified=True)
    assert executor.next_action(0.0) is not None


def test_hold_keeps_the_gripper_closed_on_what_it_carries():
    executor = ChunkExecutor()
    executor.set_chunk(ramp(), stamp=0.0, verified=True)
    executor.next_action(0.0)
    held = executor.hold()
    assert held.values.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert held.hold and held.remaining == 0


def test_silence_becomes_stale_after_the_given_number_of_ticks_and_a_chunk_ends_it():
    executor = ChunkExecutor(stale_periods=3)
    states = []
    for _ in range(3):
        executor.hold()
        states.append(executor.stale)
    assert states == [False, False, True]
    executor.set_chunk(ramp(), stamp=5.0, verified=True)
    executor.next_action(5.0)
    assert not executor.stale


def test_before_the_first_command_there_is_none_to_hold_the_hand_open_with():
    executor = ChunkExecutor()
    assert executor.hold() is None
    executor.set_chunk(ramp(), stamp=0.0, verified=True)
    assert executor.hold() is None, "a chunk of which nothing was executed says nothing about the hand"


def test_a_dropped_chunk_leaves_the_hand_closed_on_what_it_carries():
    """Deactivate and activate: the hand opened on activation, and what it held fell."""
    executor = ChunkExecutor()
    executor.set_chunk(ramp(), stamp=50.0, verified=True)
    executor.next_action(50.0)
    executor.drop()
    assert executor.next_action(50.0) is None
    assert executor.hold().values.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_reset_forgets_the_chunk_and_the_gripper():
    executor = ChunkExecutor()
    executor.set_chunk(ramp(), stamp=50.0, verified=True)
    executor.next_action(50.0)
    executor.reset()
    assert executor.next_action(50.0) is None
    assert executor.hold() is None
    # A new episode may start at an earlier stamp.
    assert executor.set_chunk(ramp(), stamp=0.0, verified=True)


def test_a_caller_that_reuses_its_buffer_does_not_change_the_chunk():
    executor = ChunkExecutor()
    buffer = ramp()
    executor.set_chunk(buffer, stamp=0.0, verified=True)
    buffer[:] = np.nan
    assert np.all(np.isfinite(executor.next_action(0.0).values))


@pytest.mark.parametrize(
    "settings",
    [
        {"period": 0},
        {"period": float("nan")},
        {"execute_steps": 0},
        {"limits": 0},
        {"limits": -1},
        {"stale_periods": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ChunkExecutor(**settings)
