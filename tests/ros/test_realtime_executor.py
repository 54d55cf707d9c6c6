"""action_executor in real time on the wall clock, as on an arm: what it does not do is what counts."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rsd_msgs.msg import Action, EpisodeStatus
from rsd_msgs.msg import ActionChunk as ActionChunkMsg

from rsd_policy.nodes.messages import chunk_to_msg
from rsd_policy.observation import ActionChunk
from tests.ros.probe import ACTIVATE, CONFIGURE, DEACTIVATE

NAME = "action_executor: commands"
STEPS = 200
"""10 s of commands."""


class Policy:
    """The test is the policy."""

    def __init__(self, probe):
        self.probe = probe
        self.commands = probe.record(Action, "action")
        self.chunks = probe.publisher(ActionChunkMsg, "action_chunk")

    def answer(self, speed, *, verified=True, gripper=1.0, episode=0):
        actions = np.full((STEPS, 7), speed, np.float32)
        actions[:, 6] = gripper
        stamp = self.probe.node.get_clock().now().to_msg()
        self.chunks.publish(
            chunk_to_msg(ActionChunk(actions=actions, verified=verified), stamp, episode, "speculative")
        )

    def level(self):
        return self.probe.diagnostics[NAME].level if NAME in self.probe.diagnostics else None

    def moving(self):
        return [c for c in self.commands if c.values[0] != 0]


@pytest.fixture(scope="module")
def policy(probe, start):
    start("rsd_policy.nodes.action_executor", "action_executor", clock="realtime", execute_steps=STEPS)
    policy = Policy(probe)
    assert probe.transition("action_executor", CONFIGURE)
    assert probe.transition("action_executor", ACTIVATE)
    return policy


def test_a_provisional_chunk_moves_nothing_unless_that_was_asked_for(policy):
    """A draft that nobody has verified used to move the arm in real time."""
    policy.answer(0.25, verified=False)
    policy.probe.spin_for(0.5)
    assert policy.commands == []
    policy.answer(0.5)
    policy.probe.spin_until(lambda: len(policy.moving()) >= 3, 10, "commands of the verified chunk")
    assert {c.values[0] for c in policy.moving()} == {0.5}


def test_a_refused_chunk_is_reported_until_a_good_one_comes(policy):
    """The error used to be overwritten at the next tick."""
    policy.answer(np.nan)
    diagnostics = policy.probe.diagnostics
    policy.probe.spin_until(lambda: policy.level() == DiagnosticStatus.ERROR, 10, "an error")
    diagnostics.clear()
    policy.probe.spin_until(lambda: NAME in diagnostics, 10, "the status of a second later")
    assert diagnostics[NAME].level == DiagnosticStatus.ERROR and "nan at step 0" in diagnostics[NAME].message
    assert list(policy.commands[-1].values) == [0.0] * 6 + [1.0], "the arm holds, the hand stays closed"
    policy.answer(0.25)
    policy.probe.spin_until(lambda: policy.level() == DiagnosticStatus.OK, 10, "the end of the error")


def test_a_robot_without_episodes_goes_on_after_one_has_ended(policy):
    """Chunks of no episode were dropped for good, in silence, once an episode (of a bag, say) had been seen."""
    statuses = policy.probe.publisher(EpisodeStatus, "episode")
    statuses.publish(EpisodeStatus(episode=3, state=EpisodeStatus.RUNNING))
    policy.answer(0.5, episode=3)
    policy.probe.spin_until(lambda: policy.commands[-1].episode == 3 and policy.moving(), 10, "motion")
    policy.answer(0.1)
    policy.probe.spin_for(0.5)
    assert policy.commands[-1].values[0] == 0.5, "while the episode runs, only its own chunks are executed"
    statuses.publish(EpisodeStatus(episode=3, state=EpisodeStatus.SUCCESS))
    policy.probe.spin_for(0.2)
    policy.answer(0.1)
    policy.probe.spin_until(lambda: policy.commands[-1].values[0] == np.float32(0.1), 10, "motion without an episode")


def test_the_last_command_of_an_interrupted_process_is_a_hold(policy):
    """SIGINT used to end the middleware first: the arm's last command was a motion."""
    assert policy.probe.transition("action_executor", DEACTIVATE)
    assert policy.probe.transition("action_executor", ACTIVATE)
    policy.commands.clear()
    policy.answer(0.5)
    policy.probe.spin_until(lambda: len(policy.moving()) >= 3, 10, "motion")
    (process,) = policy.probe.processes
    process.popen.send_signal(signal.SIGINT)
    policy.probe.spin_until(lambda: process.popen.poll() is not None, 20, "the end of the process")
    policy.probe.spin_for(0.2)
    assert process.popen.returncode == 0
    assert list(policy.commands[-1].values) == [0.0] * 6 + [1.0]
