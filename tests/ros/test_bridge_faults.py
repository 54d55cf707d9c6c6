"""A simulation that breaks: the episode is given up with the reason, and a dead one ends the process."""

from __future__ import annotations

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rsd_msgs.msg import EpisodeStatus

from tests.ros.faulty_bridge import BREAK, EXPLODE
from tests.ros.test_bridge import CLOSE, Robot


@pytest.fixture(scope="module")
def robot(probe, start):
    start("tests.ros.faulty_bridge", "sim_bridge", render="never")
    return Robot(probe)


def test_physics_that_explode_abort_the_episode_and_the_next_one_runs(robot):
    response = robot.reset(seed=EXPLODE)
    assert response.accepted, response.message
    robot.probe.spin_until(lambda: len(robot.statuses) > 0, 10, "the first state")
    assert robot.step(CLOSE, 0).state == EpisodeStatus.RUNNING
    robot.act(CLOSE, 1)
    robot.probe.spin_until(lambda: robot.statuses[-1].state != EpisodeStatus.RUNNING, 20, "the end of the episode")
    end = robot.statuses[-1]
    assert (end.state, end.step, end.observation_due) == (EpisodeStatus.ABORTED, 1, False)
    assert "physics: expected a stable simulation" in end.message
    assert robot.probe.diagnostics["sim_bridge: episode"].level == DiagnosticStatus.ERROR
    response = robot.reset()
    assert response.accepted and response.episode == end.episode + 1
    robot.probe.spin_until(lambda: robot.statuses[-1].episode == response.episode, 10, "the next episode")
    for step in range(3):
        assert robot.step(CLOSE, step).state == EpisodeStatus.RUNNING


def test_an_unexpected_error_in_a_reset_is_answered_and_ends_the_process_naming_it(robot):
    response = robot.reset(seed=BREAK)
    assert not response.accepted
    assert response.message == "RuntimeError: the graphics driver is gone"
    process = robot.probe.processes[0]
    robot.probe.spin_until(lambda: process.popen.poll() is not None, 20, "the end of the process")
    assert process.popen.returncode == 1
    assert process.log.read_text().rstrip().endswith("RuntimeError: the graphics driver is gone")
