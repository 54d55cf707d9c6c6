"""Bridge, policy and executor together in real time: the arm moves, and without chunks it holds still and says so."""

from __future__ import annotations

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rsd_msgs.msg import ActionChunk, EpisodeStatus
from rsd_msgs.srv import ResetEpisode

from tests.ros.probe import ACTIVATE, CONFIGURE, DEACTIVATE

COMMANDS = "action_executor: commands"
MOTION = slice(0, 6)


def test_the_arm_moves_with_chunks_and_holds_still_without(probe, start):
    # small images: this is about the graph, and 20 Hz have to be rendered on whatever machine runs it
    start("sim_bridge.nodes.bridge_node", "sim_bridge", clock="realtime", image_size=64)
    start(
        "rsd_policy.nodes.policy_node", "policy_node", policy="mini", clock="realtime", image_size=64, use_sim_time=True
    )
    start("rsd_policy.nodes.action_executor", "action_executor", clock="realtime", use_sim_time=True)
    statuses = probe.record(EpisodeStatus, "episode")
    chunks = probe.record(ActionChunk, "action_chunk")
    for node in ("policy_node", "action_executor"):
        assert probe.transition(node, CONFIGURE)
        assert probe.transition(node, ACTIVATE)
    probe.spin_for(3.0)
    inference = probe.diagnostics["policy_node: inference"]
    assert inference.level == DiagnosticStatus.OK, f"before the first episode nothing is missing: {inference.message}"
    request = ResetEpisode.Request(suite="libero_spatial", task=0, init_state=0, seed=0)
    response = probe.call(ResetEpisode, "sim_bridge/reset", request)
    assert response.accepted, response.message

    def moved(status):
        return bool(np.any(status.executed[MOTION] != 0))

    probe.spin_until(lambda: sum(moved(s) for s in statuses) >= 10, 30, "ten steps in which the arm moves")
    assert any(c.verified for c in chunks)
    assert statuses[-1].state == EpisodeStatus.RUNNING

    assert probe.transition("policy_node", DEACTIVATE)
    probe.spin_until(
        lambda: COMMANDS in probe.diagnostics and probe.diagnostics[COMMANDS].level == DiagnosticStatus.WARN,
        20,
        "a warning of the executor",
    )
    assert "holding still" in probe.diagnostics[COMMANDS].message
    held, gripper = len(statuses), statuses[-1].executed[6]
    probe.spin_until(lambda: len(statuses) >= held + 10, 20, "ten more steps")
    assert not any(moved(s) for s in statuses[held:]), "no chunk, no motion"
    assert {s.executed[6] for s in statuses[held:]} == {gripper}, "the gripper stays as it was"
    assert not any(s.message for s in statuses), "a hold is an ordinary command"
