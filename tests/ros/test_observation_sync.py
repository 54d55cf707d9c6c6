"""What becomes one observation, and what time that goes back does to it."""

from __future__ import annotations

from rsd_policy.nodes.observation_sync import HISTORY, JUMP_BACK_NS, ObservationSync

PERIOD_NS = 50_000_000


def filled() -> tuple[ObservationSync, int]:
    """One whose history is full, and its newest stamp."""
    sync = ObservationSync(["a", "b"])
    stamps = [100 * JUMP_BACK_NS + i * PERIOD_NS for i in range(2 * HISTORY)]
    for stamp in stamps:
        assert sync.add("a", stamp, 1) is None
        assert sync.add("b", stamp, 2) == {"a": 1, "b": 2}
    return sync, stamps[-1]


def test_a_moment_is_complete_once():
    sync, newest = filled()
    assert sync.add("b", newest, 3) is None
    assert sync.moment(newest) == {"a": 1, "b": 3}
    assert sync.moment(newest - 2 * HISTORY * PERIOD_NS) is None


def test_an_input_that_comes_late_is_no_jump():
    sync, newest = filled()
    assert not sync.restart(newest - JUMP_BACK_NS)
    assert not sync.restart(newest + JUMP_BACK_NS)
    assert sync.newest() == newest


def test_after_a_jump_back_moments_become_complete_again():
    sync, newest = filled()
    back = newest - JUMP_BACK_NS - 1
    assert sync.restart(back)
    assert sync.newest() == 0
    assert not sync.restart(back)
    assert sync.add("a", back, 1) is None
    assert sync.add("b", back, 2) == {"a": 1, "b": 2}


def test_nothing_jumps_before_anything_came():
    assert not ObservationSync(["a"]).restart(0)
