"""Real time: the simulation does not wait. Bridge and executor as processes of their own, the test is the policy."""

from __future__ import annotations

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rsd_msgs.msg import Action, EpisodeStatus
from rsd_msgs.msg import ActionChunk as ActionChunkMsg
from rsd_msgs.srv import ResetEpisode

from rsd_policy.nodes.messages import chunk_to_msg
from rsd_policy.observation import ActionChunk
from tests.ros.probe import ACTIVATE, CONFIGURE, DEACTIVATE

HOLD_OPEN = [0.0] * 6 + [-1.0]
STEPS = 40
"""Steps of the test's chunks: 2 s, long enough for a machine that is busy."""


@pytest.fixture(scope="module")
def graph(probe, start):
    start("sim_bridge.nodes.bridge_node", "sim_bridge", clock="realtime", render="never")
    parameters = {"clock": "realtime", "execute_steps": STEPS, "use_sim_time": True, "execute_provisional": True}
    start("rsd_policy.nodes.action_executor", "action_executor", **parameters)
    statuses = probe.record(EpisodeStatus, "episode")
    commands = probe.record(Action, "action")
    chunks = probe.publisher(ActionChunkMsg, "action_chunk")
    return probe, statuses, commands, chunks


@pytest.fixture(scope="module")
def reports_during_a_reset(graph):
    """What /diagnostics said while the simulation was created, which takes seconds."""
    probe = graph[0]
    reports = probe.record(DiagnosticArray, "/diagnostics")
    request = ResetEpisode.Request(suite="libero_object", task=0, init_state=0, seed=0)
    start = time.monotonic()
    assert probe.call(ResetEpisode, "sim_bridge/reset", request).accepted
    return [s.message for r in reports for s in r.status if s.name == "sim_bridge: episode"], time.monotonic() - start


@pytest.fixture(autouse=True)
def episode(graph, reports_during_a_reset):
    """A new episode for each test: it does not wait, so the last test's may be over."""
    probe, statuses, commands, _ = graph
    request = ResetEpisode.Request(suite="libero_object", task=0, init_state=0, seed=0)
    response = probe.call(ResetEpisode, "sim_bridge/reset", request)
    assert response.accepted, response.message
    statuses.clear()
    commands.clear()
    probe.spin_until(lambda: bool(statuses) and statuses[-1].step > 0, 30, "a running episode")


def chunk(status, base, verified):
    """A chunk for the moment of `status`, of which row i says i; the gripper closed."""
    actions = np.full((STEPS, 7), base, np.float32)
    actions[:, 1] = np.arange(STEPS) / 100
    actions[:, 6] = 1.0
    msg = ActionChunk(actions=actions, verified=verified)
    return chunk_to_msg(msg, status.header.stamp, status.episode, "speculative")


def test_diagnostics_go_on_while_a_simulation_is_created(reports_during_a_reset):
    """A reset used to silence them for as long as it took, up to 180 s."""
    messages, seconds = reports_during_a_reset
    assert messages.count("creating libero_object task 0") >= min(2, int(seconds / 2))


def test_without_commands_the_simulation_goes_on_and_the_arm_holds_still(graph):
    probe, statuses, _, _ = graph
    probe.spin_until(lambda: statuses[-1].step >= 20, 60, "20 steps")
    assert all(list(s.executed) == HOLD_OPEN for s in statuses if s.step > 0)
    assert all(s.observation_due for s in statuses if s.state == EpisodeStatus.RUNNING)


def test_a_late_chunk_is_entered_where_it_is_due_and_the_arm_holds_after_its_end(graph):
    probe, statuses, commands, chunks = graph
    assert probe.transition("action_executor", CONFIGURE)
    assert probe.transition("action_executor", ACTIVATE)
    latest = statuses[-1].step
    probe.spin_until(lambda: statuses[-1].step >= latest + 5, 60, "five steps")
    assert commands == [], "before the first chunk nothing is commanded"
    observed = next(s for s in statuses if s.step == latest)
    chunks.publish(chunk(observed, 0.01, verified=False))
    probe.spin_until(lambda: any(c.values[0] == np.float32(0.01) for c in commands), 30, "a provisional command")
    chunks.publish(chunk(observed, 0.02, verified=True))
    end = observed.step + STEPS + 6
    probe.spin_until(lambda: statuses[-1].step >= end, 60, "the end of the chunk")
    moving = [c for c in commands if c.values[0] != 0]
    rows = [round(float(c.values[1]) * 100) for c in moving]
    assert rows[0] >= 5, "steps that are past are not executed"
    assert rows == sorted(set(rows)) and rows[-1] < STEPS
    bases = [round(float(c.values[0]), 2) for c in moving]
    assert bases == sorted(bases) and set(bases) == {0.01, 0.02}, "first the provisional, then the verified, never back"
    assert list(statuses[-1].executed) == [0.0] * 6 + [1.0], "zero motion, the gripper stays closed"
    held = probe.diagnostics["action_executor: commands"]
    probe.spin_until(lambda: "holding still" in probe.diagnostics[held.name].message, 10, "a warning")


def test_when_the_executor_stops_the_bridge_does_not_repeat_its_last_motion(graph):
    probe, statuses, commands, chunks = graph
    chunks.publish(chunk(statuses[-1], 0.03, verified=True))
    probe.spin_until(lambda: statuses[-1].executed[0] == np.float32(0.03), 30, "motion")
    assert probe.transition("action_executor", DEACTIVATE)
    step = statuses[-1].step
    probe.spin_until(lambda: statuses[-1].step >= step + 6, 60, "six more steps")
    assert list(statuses[-1].executed) == [0.0] * 6 + [1.0]
    assert list(commands[-1].values) == [0.0] * 6 + [1.0], "the safety command went out last"


def test_commands_of_another_episode_move_nothing(graph):
    probe, statuses, _, _ = graph
    actions = probe.publisher(Action, "action")
    step = statuses[-1].step
    for _ in range(5):
        actions.publish(Action(episode=statuses[-1].episode + 1, values=[0.5] * 7))
        probe.spin_for(0.05)
    probe.spin_until(lambda: statuses[-1].step >= step + 5, 60, "five steps")
    assert all(s.executed[0] == 0.0 for s in statuses if s.step > step)
