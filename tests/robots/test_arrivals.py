"""What is said about inputs that do not make an observation."""

from __future__ import annotations

import pytest

from rsd_policy.robots.arrivals import Arrivals
from rsd_policy.robots.contract import Alignment

MS = 1_000_000
TOPICS = {"agentview": "/cam/image", "wrist": "/hand/image", "pose": "/eef_pose"}
EXACT = Alignment()
NEAREST = Alignment("nearest", "header", "agentview", 0.02, 0.03)


def arrivals(apart_ms: float, alignment: Alignment = EXACT) -> Arrivals:
    """Three inputs at 20 Hz, of which the second one's stamps are late."""
    found = Arrivals(TOPICS, alignment)
    for i in range(6):
        stamp = 10_000 * MS + i * 50 * MS
        found.add("agentview", stamp)
        found.add("wrist", stamp + round(apart_ms * MS))
        found.add("pose", stamp)
    return found


def test_stamps_a_millisecond_apart_are_called_so_and_not_missing():
    """They were said not to have come, and to be looked for."""
    text = arrivals(1.0).explain()
    assert "expected inputs with equal stamps, but /hand/image came 1.000 ms later; " in text
    assert "how: nearest" in text
    assert "did not come" not in text


def test_stamps_beyond_the_tolerance_are_told_with_it():
    text = arrivals(24.0, NEAREST).explain()
    assert "within 20 ms of the camera 'agentview', but /hand/image came 24.000 ms later" in text
    assert "same clock" in text


@pytest.mark.parametrize("name", list(TOPICS))
def test_a_stamp_of_zero_is_called_so(name):
    found = Arrivals(TOPICS, EXACT)
    for other in TOPICS:
        found.add(other, 0 if other == name else 5 * MS)
    assert f"{TOPICS[name]} came with stamp 0" in found.explain()
    assert "stamps: arrival" in found.explain()


def test_the_input_that_stopped_is_named_as_it_is_remapped():
    found = arrivals(0.0)
    found.complete(10_250 * MS)
    found.add("agentview", 10_300 * MS)
    found.add("pose", 10_300 * MS)
    expected = "after the observation of 10.250 s, but /hand/image did not come; check that the topic is published"
    assert found.explain().endswith(expected)


def test_when_nothing_has_ever_come_no_time_is_told():
    """The first message said "after 0.000 s"."""
    text = Arrivals(TOPICS, EXACT).explain()
    assert text == "/cam/image, /hand/image, /eef_pose did not come; check that they are published"


def test_in_lockstep_the_stamp_that_was_asked_for_is_the_one_compared_with():
    found = Arrivals(TOPICS, EXACT)
    for name in TOPICS:
        found.add(name, 99 * MS)
    assert "/cam/image came 1.000 ms earlier, /hand/image came 1.000 ms earlier" in found.explain(100 * MS)
