"""The node between chunks and the arm, as a process of its own: one command per tick, and the safety command last."""

from __future__ import annotations

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rsd_msgs.msg import Action, EpisodeStatus
from rsd_msgs.msg import ActionChunk as ActionChunkMsg

from rsd_policy.nodes.messages import chunk_to_msg, to_stamp
from rsd_policy.observation import ActionChunk
from tests.ros.probe import ACTIVATE, CONFIGURE, DEACTIVATE

TICK_NS = 50_000_000


@pytest.fixture(scope="module")
def graph(probe, start):
    start("rsd_policy.nodes.action_executor", "action_executor", execute_steps=4)
    assert probe.transition("action_executor", CONFIGURE)
    assert probe.transition("action_executor", ACTIVATE)
    return Graph(probe)


class Graph:
    """The executor's neighbours."""

    episode = 0

    def __init__(self, probe):
        self.probe = probe
        self.actions = probe.record(Action, "action")
        self.statuses = probe.publisher(EpisodeStatus, "episode")
        self.chunks = probe.publisher(ActionChunkMsg, "action_chunk")
        probe.spin_until(lambda: probe.node.count_publishers("action") == 1, 60, "the executor's topic")

    def new_episode(self):
        Graph.episode += 1
        self.actions.clear()

    def tick(self, step, **changes):
        status = EpisodeStatus(episode=self.episode, state=EpisodeStatus.RUNNING, step=step, **changes)
        status.header.stamp = to_stamp(self.episode * 10**12 + step * TICK_NS)
        self.statuses.publish(status)

    def chunk(self, step, values, verified=True, episode=None):
        chunk = ActionChunk(actions=np.asarray(values, np.float32), verified=verified)
        stamp = to_stamp(self.episode * 10**12 + step * TICK_NS)
        self.chunks.publish(chunk_to_msg(chunk, stamp, self.episode if episode is None else episode, "baseline"))

    def expect(self, count):
        self.probe.spin_until(lambda: len(self.actions) >= count, 10, f"{count} commands")


def ramp(start=0.0):
    return np.full((8, 7), start, np.float32) + np.arange(8, dtype=np.float32)[:, None] / 64


def test_one_command_per_tick_from_the_chunk_of_the_observation(graph):
    graph.new_episode()
    graph.tick(0)
    graph.probe.spin_for(0.3)
    assert graph.actions == [], "there was no chunk yet"
    graph.chunk(0, ramp())
    graph.expect(1)
    for step in range(1, 4):
        graph.tick(step)
        graph.expect(step + 1)
    assert [a.step for a in graph.actions] == [0, 1, 2, 3]
    assert [a.remaining for a in graph.actions] == [3, 2, 1, 0]
    assert np.array_equal([a.values for a in graph.actions], ramp()[:4])
    graph.tick(4)
    graph.probe.spin_for(0.3)
    assert len(graph.actions) == 4, "only execute_steps of a chunk are executed"


def test_lockstep_does_not_move_on_a_provisional_chunk(graph):
    graph.new_episode()
    graph.tick(0)
    graph.chunk(0, ramp(0.5), verified=False)
    graph.probe.spin_for(0.3)
    assert graph.actions == []
    graph.chunk(0, ramp())
    graph.expect(1)
    assert graph.actions[0].values[0] == 0.0


def test_a_tick_that_is_asked_again_gets_the_same_answer_again(graph):
    graph.new_episode()
    graph.tick(0)
    graph.chunk(0, ramp())
    graph.expect(1)
    graph.tick(0)
    graph.expect(2)
    assert graph.actions[1] == graph.actions[0]


def test_after_a_stop_nothing_of_the_chunk_is_executed(graph):
    """The chunk of a cancelled goal was executed to its end."""
    graph.new_episode()
    graph.tick(0)
    graph.chunk(0, ramp())
    graph.expect(1)
    graph.chunks.publish(ActionChunkMsg(episode=graph.episode))
    graph.probe.spin_for(0.2)
    graph.tick(1)
    graph.probe.spin_for(0.3)
    assert len(graph.actions) == 1
    graph.chunk(1, ramp(0.5))
    graph.expect(2)
    assert (graph.actions[1].step, graph.actions[1].values[0]) == (1, 0.5)


def test_a_refused_command_is_not_sent_again(graph):
    graph.new_episode()
    graph.tick(0)
    graph.chunk(0, ramp())
    graph.expect(1)
    graph.tick(0, message="action: expected values in [-1, 1]")
    graph.probe.spin_for(0.3)
    assert len(graph.actions) == 1


def test_nothing_of_the_last_episode_is_executed_in_the_next(graph):
    graph.new_episode()
    graph.tick(0)
    graph.chunk(0, ramp())
    graph.expect(1)
    before = graph.episode
    graph.new_episode()
    graph.tick(0)
    graph.chunk(0, ramp(0.5), episode=before)
    graph.probe.spin_for(0.3)
    assert graph.actions == []


def test_a_chunk_may_overtake_the_first_state_of_its_episode(graph):
    graph.new_episode()
    graph.chunk(0, ramp())
    graph.probe.spin_for(0.2)
    graph.tick(0)
    graph.expect(1)
    assert graph.actions[0].episode == graph.episode


def test_nan_moves_nothing_and_is_reported(graph):
    graph.new_episode()
    graph.tick(0)
    values = ramp()
    values[3, 2] = np.nan
    graph.chunk(0, values)
    name = "action_executor: commands"
    diagnostics = graph.probe.diagnostics
    graph.probe.spin_until(
        lambda: name in diagnostics and diagnostics[name].level == DiagnosticStatus.ERROR, 10, "an error in diagnostics"
    )
    assert "nan at step 3, degree of freedom 2" in diagnostics[name].message
    assert graph.actions == []


def test_values_out_of_range_are_clipped(graph):
    graph.new_episode()
    graph.tick(0)
    graph.chunk(0, np.full((8, 7), -7.0))
    graph.expect(1)
    assert list(graph.actions[0].values) == [-1.0] * 7


def test_the_safety_command_goes_out_last(graph):
    graph.new_episode()
    graph.tick(0)
    graph.chunk(0, np.full((8, 7), 0.75))
    graph.expect(1)
    assert graph.probe.transition("action_executor", DEACTIVATE)
    graph.expect(2)
    assert list(graph.actions[1].values) == [0, 0, 0, 0, 0, 0, 0.75], "zero motion, the gripper as it was"
    assert graph.actions[1].header.stamp == graph.actions[0].header.stamp, "simulation time, as all of them"
    graph.tick(1)
    graph.chunk(0, ramp())
    graph.probe.spin_for(0.3)
    assert len(graph.actions) == 2, "an inactive node commands nothing"
    assert graph.probe.transition("action_executor", ACTIVATE)


def test_the_hand_does_not_open_when_the_node_is_activated_again(graph):
    """Nothing is commanded before a chunk, and the gripper's last command survives the pause."""
    graph.new_episode()
    graph.tick(0)
    graph.chunk(0, np.full((8, 7), 1.0))
    graph.expect(1)
    assert graph.probe.transition("action_executor", DEACTIVATE)
    assert graph.probe.transition("action_executor", ACTIVATE)
    graph.expect(2)
    assert graph.probe.transition("action_executor", DEACTIVATE)
    graph.expect(3)
    graph.probe.spin_for(0.3)
    assert [list(a.values) for a in graph.actions[1:]] == [[0.0] * 6 + [1.0]] * 2
    assert graph.probe.transition("action_executor", ACTIVATE)
