"""What becomes one observation: equal or nearest stamps, and what time that goes back does to it."""

from __future__ import annotations

import itertools

import pytest

from rsd_policy.robots.alignment import HISTORY, JUMP_BACK_NS, Exact, Nearest
from rsd_policy.robots.contract import Alignment

PERIOD_NS = 50_000_000
MS = 1_000_000


def filled() -> tuple[Exact, int]:
    """One whose history is full, and its newest stamp."""
    sync = Exact(["a", "b"])
    stamps = [100 * JUMP_BACK_NS + i * PERIOD_NS for i in range(2 * HISTORY)]
    for stamp in stamps:
        assert sync.add("a", stamp, 1) == []
        assert [moment.messages for moment in sync.add("b", stamp, 2)] == [{"a": 1, "b": 2}]
    return sync, stamps[-1]


def test_a_moment_is_complete_once():
    sync, newest = filled()
    assert sync.add("b", newest, 3) == []
    assert sync.moment(newest).messages == {"a": 1, "b": 3}
    assert sync.moment(newest - 2 * HISTORY * PERIOD_NS) is None


def test_an_input_that_comes_late_is_no_jump():
    sync, newest = filled()
    assert not sync.restart("a", newest - JUMP_BACK_NS)
    assert not sync.restart("a", newest + JUMP_BACK_NS)
    sync.add("a", newest + 20 * JUMP_BACK_NS, 1)
    assert not sync.restart("b", newest), "another input is further"
    assert sync.moment(newest) is not None


def test_after_a_jump_back_moments_become_complete_again():
    sync, newest = filled()
    back = newest - JUMP_BACK_NS - 1
    assert sync.restart("a", back)
    assert sync.moment(newest) is None
    assert not sync.restart("a", back)
    assert sync.add("a", back, 1) == []
    assert len(sync.add("b", back, 2)) == 1


def test_nothing_jumps_before_anything_came():
    assert not Exact(["a"]).restart("a", 0)


def nearest(tolerance_ms: float = 20, wait_ms: float = 30) -> Nearest:
    alignment = Alignment("nearest", "header", "camera", tolerance_ms * 1e-3, wait_ms * 1e-3)
    return Nearest(["camera", "wrist", "joints"], alignment)


STREAM = [
    ("camera", 100 * MS),
    ("wrist", 92 * MS),
    ("wrist", 125 * MS),
    *[("joints", ms * MS) for ms in range(80, 126, 5)],
]
"""One image of the reference, two of the other camera around it, and joints at 200 Hz."""


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_messages_do_not_depend_on_the_order_in_which_topics_arrive(seed):
    import random

    streams = {name: [s for n, s in STREAM if n == name] for name in ("camera", "wrist", "joints")}
    names = [name for name, _ in STREAM]
    random.Random(seed).shuffle(names)
    taken = {name: iter(stamps) for name, stamps in streams.items()}
    sync = nearest()
    found = []
    for name in names:
        stamp = next(taken[name])
        found += sync.add(name, stamp, (name, stamp), now=0)
    assert [moment.stamp for moment in found] == [100 * MS]
    assert found[0].messages == {
        "camera": ("camera", 100 * MS),
        "wrist": ("wrist", 92 * MS),
        "joints": ("joints", 100 * MS),
    }


def test_an_image_is_not_pushed_out_of_the_history_by_joint_states_at_1_khz():
    sync = nearest(tolerance_ms=40)
    sync.add("wrist", 90 * MS, "image", now=0)
    for ms in range(90, 130):
        sync.add("joints", ms * MS, ms, now=0)
    sync.add("camera", 100 * MS, "reference", now=0)
    assert [m.messages["wrist"] for m in sync.add("wrist", 130 * MS, "later", now=0)] == ["image"]


def test_an_input_outside_the_tolerance_makes_no_moment():
    sync = nearest(tolerance_ms=5)
    sync.add("camera", 100 * MS, 0, now=0)
    sync.add("joints", 100 * MS, 0, now=0)
    sync.add("wrist", 90 * MS, 0, now=0)
    assert sync.add("wrist", 110 * MS, 0, now=0) == []
    assert sync.moment(100 * MS) is None


def test_what_may_still_come_nearer_is_awaited_and_no_longer_than_stated():
    sync = nearest(wait_ms=30)
    sync.add("joints", 101 * MS, 0, now=0)
    sync.add("wrist", 95 * MS, "before", now=0)
    assert sync.add("camera", 100 * MS, 0, now=0) == [], "a nearer wrist image may follow"
    assert sync.moment(100 * MS, now=29 * MS) is None
    assert sync.moment(100 * MS, now=30 * MS).messages["wrist"] == "before"


def test_showing_only_the_neighbours_of_a_moment_gives_the_same_moment():
    """A replay over ROS shows no more than these, so that no queue overflows."""
    whole, few = nearest(), nearest()
    found = list(itertools.chain.from_iterable(whole.add(n, s, (n, s), now=0) for n, s in STREAM))
    again = list(itertools.chain.from_iterable(few.add(n, s, (n, s), now=0) for n, s in found[0].neighbours))
    assert len(found[0].neighbours) < len(STREAM)
    assert [m.messages for m in again] == [m.messages for m in found]


def test_a_bag_that_loops_starts_anew():
    sync = nearest()
    for name, stamp in STREAM:
        sync.add(name, stamp + 10 * JUMP_BACK_NS, 0, now=0)
    assert sync.restart("camera", 100 * MS)
    assert list(itertools.chain.from_iterable(sync.add(n, s, 0, now=0) for n, s in STREAM))


@pytest.mark.parametrize("make", [lambda: Exact(["camera", "wrist", "joints"]), nearest])
def test_a_bag_of_less_than_a_second_that_loops_starts_anew(make):
    """Its second pass was taken for messages that came late, and ignored."""
    sync = make()
    for passes in range(2):
        moments = []
        for i in range(10):
            for name in ("wrist", "joints", "camera"):
                restarted = sync.restart(name, i * PERIOD_NS)
                assert restarted == (passes == 1 and (i, name) == (0, "wrist"))
                moments += sync.add(name, i * PERIOD_NS, passes, now=0)
        assert [m.stamp for m in moments] == [i * PERIOD_NS for i in range(10)]
        assert all(set(m.messages.values()) == {passes} for m in moments)
