"""The conductor in front of a graph that misbehaves: an episode that says nothing about the policy is no failure."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rsd_msgs.msg import Action, ActionChunk, EpisodeStatus
from rsd_msgs.srv import ResetEpisode

from rsd_policy.errors import EpisodeError
from rsd_policy.evaluation.protocol import EpisodeSpec
from rsd_policy.nodes import conductor as module
from rsd_policy.nodes.conductor import Conductor, OtherPolicyError, SilentNodeError
from rsd_policy.nodes.messages import to_stamp
from rsd_policy.nodes.runtime import COMMANDS

TICK_S = 0.05
SPEC = EpisodeSpec("libero_spatial", 0, 0)


class Simulation:
    """Goes on at 20 Hz whatever the policy does, as sim_bridge does in real time."""

    max_steps = 400

    def __init__(self, probe):
        node = probe.node
        self.step = self.episode = 0
        self.level = DiagnosticStatus.OK
        self.chunk_every, self.driver = 0, ("", "")
        self.faulty = "policy_node"
        self.commands, self.silent_from, self.abort_at = True, None, None
        self.statuses = node.create_publisher(EpisodeStatus, "episode", COMMANDS)
        self.chunks = node.create_publisher(ActionChunk, "action_chunk", COMMANDS)
        self.actions = node.create_publisher(Action, "action", COMMANDS)
        self.diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        node.create_service(ResetEpisode, "sim_bridge/reset", self.reset)
        node.create_timer(TICK_S, self.tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def reset(self, request, response):
        self.step, self.episode = 0, self.episode + 1
        response.accepted, response.episode = True, self.episode
        return response

    def tick(self):
        if self.episode == 0 or self.step > self.max_steps or self.step == self.silent_from:
            return
        end = self.step == self.max_steps
        state = EpisodeStatus.TIMEOUT if end else EpisodeStatus.RUNNING
        status = EpisodeStatus(episode=self.episode, step=self.step, state=state, observation_due=not end)
        if self.step == self.abort_at:
            status.state, status.message = EpisodeStatus.ABORTED, "the physics exploded"
            self.abort_at, self.max_steps = None, self.step
        status.header.stamp = to_stamp(self.step * 50_000_000)
        self.statuses.publish(status)
        if self.chunk_every and self.step % self.chunk_every == 0:
            chunk = ActionChunk(
                mode=self.driver[0],
                policy_sha256=self.driver[1],
                episode=self.episode,
                horizon=1,
                dof=7,
                actions=[0.0] * 7,
                verified=True,
                levels=8,
            )
            chunk.header.stamp = status.header.stamp
            self.chunks.publish(chunk)
        if self.commands:
            self.actions.publish(Action(episode=self.episode, step=self.step))
        if self.step % 10 == 0:
            fault = DiagnosticStatus(level=self.level, name=f"{self.faulty}: inference", message="NonFiniteError: NaN")
            self.diagnostics.publish(DiagnosticArray(status=[fault]))
        self.step += 1


@pytest.fixture(scope="module")
def simulation(probe):
    return Simulation(probe)


def conduct(probe, stall_timeout_s, driver=None):
    conductor = Conductor(
        probe.node,
        probe.executor,
        policy_node="policy_node",
        realtime=True,
        stall_timeout_s=stall_timeout_s,
        driver=driver,
    )
    return conductor.run_episode(SPEC, lambda step, ms: None)


def test_a_policy_that_reports_errors_in_real_time_makes_an_error(probe, simulation):
    simulation.level, simulation.chunk_every = DiagnosticStatus.ERROR, 0
    with pytest.raises(EpisodeError, match="policy_node: inference: NonFiniteError: NaN"):
        conduct(probe, 60.0)
    assert simulation.step < simulation.max_steps


def test_a_policy_that_goes_silent_in_real_time_is_named(probe, simulation):
    simulation.level, simulation.chunk_every = DiagnosticStatus.OK, 0
    with pytest.raises(SilentNodeError, match="policy_node is silent"):
        conduct(probe, 2.0)


@pytest.mark.parametrize(
    ("what", "value", "name"), [("silent_from", 10, "sim_bridge"), ("commands", False, "action_executor")]
)
def test_each_node_that_goes_silent_in_real_time_is_named(probe, simulation, monkeypatch, what, value, name):
    """A simulation that stops silences the others too: it is the one to be named."""
    simulation.level, simulation.chunk_every = DiagnosticStatus.OK, 4
    monkeypatch.setattr(simulation, what, value)
    with pytest.raises(SilentNodeError, match=f"{name} is silent"):
        conduct(probe, 2.0)


def test_an_episode_that_the_simulation_gives_up_is_an_error_with_its_reason(probe, simulation, monkeypatch):
    simulation.level, simulation.chunk_every = DiagnosticStatus.OK, 4
    monkeypatch.setattr(simulation, "abort_at", 20)
    monkeypatch.setattr(simulation, "max_steps", 400)
    with pytest.raises(EpisodeError, match="sim_bridge gave the episode up: the physics exploded"):
        conduct(probe, 20.0)


def test_a_policy_that_answers_in_real_time_fails_fairly(probe, simulation, monkeypatch):
    """Longer than any patience, with an error that each chunk outlives."""
    monkeypatch.setattr(module, "FAULT_GRACE_S", 1.0)
    monkeypatch.setattr(Simulation, "max_steps", 60)
    simulation.level, simulation.chunk_every = DiagnosticStatus.ERROR, 4
    result = conduct(probe, 2.0)
    assert (result.outcome, result.steps, len(result.chunks)) == ("failure", 60, 15)


def test_an_error_of_a_node_outside_of_the_graph_ends_nothing(probe, simulation, monkeypatch):
    """Somebody's joystick that was not open used to end a run in which the policy paused for five seconds."""
    monkeypatch.setattr(simulation, "faulty", "joy_node")
    monkeypatch.setattr(simulation, "level", DiagnosticStatus.ERROR)
    monkeypatch.setattr(simulation, "chunk_every", 90)  # 4.5 s: longer than the grace that an error has
    monkeypatch.setattr(simulation, "max_steps", 100)
    assert conduct(probe, stall_timeout_s=30.0).outcome == "failure"


@pytest.mark.parametrize(("mode", "policy_sha256"), [("baseline", "ab12"), ("gated", "cd34")])
def test_a_run_does_not_record_what_another_policy_or_mode_did(probe, simulation, monkeypatch, mode, policy_sha256):
    """Whoever was active in the domain drove the arm, and the run said it was the policy of its own arguments."""
    monkeypatch.setattr(Simulation, "max_steps", 40)
    simulation.level, simulation.chunk_every = DiagnosticStatus.OK, 4
    simulation.driver = ("gated", "ab12")
    assert len(conduct(probe, 20.0, ("gated", "ab12")).chunks) == 10
    with pytest.raises(OtherPolicyError, match=f"expected mode '{mode}' of policy {policy_sha256}, got mode 'gated'"):
        conduct(probe, 20.0, (mode, policy_sha256))


def test_a_node_that_was_deactivated_is_called_so(probe, simulation, monkeypatch):
    """It was said to be silent, as one that hangs is."""
    monkeypatch.setattr(simulation, "level", DiagnosticStatus.STALE)
    monkeypatch.setattr(simulation, "chunk_every", 0)
    with pytest.raises(SilentNodeError, match="policy_node was deactivated in the episode"):
        conduct(probe, 2.0)


def test_what_a_silent_node_in_a_namespace_reports_is_said(probe):
    """Its full name begins with the namespace: the error that it reported was left out."""
    node = Node("conducting", namespace="/robot1", context=probe.node.context)
    executor = SingleThreadedExecutor(context=probe.node.context)
    executor.add_node(node)
    simulation = Simulation(SimpleNamespace(node=node))
    simulation.level, simulation.faulty = DiagnosticStatus.ERROR, "robot1/policy_node"
    try:
        with pytest.raises(SilentNodeError, match=r"policy_node is silent.*it reports NonFiniteError: NaN"):
            conduct(SimpleNamespace(node=node, executor=executor), 2.0)
    finally:
        node.destroy_node()
