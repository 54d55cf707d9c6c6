"""Mode gated in real time: the gate looks at what was executed, not at what had been planned."""

from __future__ import annotations

import numpy as np
import pytest
from rsd_msgs.msg import Action
from std_msgs.msg import String

from rsd_policy import Observation, RSDInferenceEngine, load_policy
from rsd_policy.checkpoints.loading import save_policy
from rsd_policy.nodes.messages import to_stamp
from tests.policies import calibrated_gate, small_policy
from tests.ros.probe import ACTIVATE, CONFIGURE
from tests.ros.test_policy_node import FRAMES, INSTRUCTION, Robot


@pytest.fixture(scope="module")
def permissive(tmp_path_factory):
    """A checkpoint whose gate lets everything through that the gripper rule does not stop."""
    directory = tmp_path_factory.mktemp("checkpoint") / "permissive"
    save_policy(directory, small_policy(gate=calibrated_gate(threshold=0.0) | {"steps": 1}))
    return directory


def test_a_hand_that_is_still_open_is_not_taken_for_closed(probe, start, permissive):
    """In real time a chunk is replaced after a step or two. The engine took its last step for executed: a planned
    closing made the next "close now" look like no change, and it went out unverified."""
    parameters = {"policy": str(permissive), "mode": "gated", "clock": "realtime", "execute_steps": 1}
    start("rsd_policy.nodes.policy_node", "policy_node", **parameters)
    robot = Robot(probe)
    commands = probe.publisher(Action, "action")
    assert probe.transition("policy_node", CONFIGURE)
    assert probe.transition("policy_node", ACTIVATE)
    robot.instructions.publish(String(data=INSTRUCTION))
    probe.spin_for(0.5)

    def answer_after(gripper):
        """Whether the chunk is skipped when the hand was last told `gripper`."""
        command = Action(values=[0.0] * 6 + [gripper])
        command.header.stamp = to_stamp(next(robot.clock))
        commands.publish(command)
        probe.spin_for(0.2)
        stamp, proprio = robot.show()
        return robot.wait_final(stamp)[-1].skipped, proprio

    _, proprio = answer_after(1.0)
    engine = RSDInferenceEngine(load_policy(permissive), mode="speculative")
    observation = Observation(
        images={"agentview": FRAMES[0], "wrist": FRAMES[1]}, proprio=proprio, instruction=INSTRUCTION
    )
    planned = float(next(iter(engine.stream(observation))).actions[0, 6])
    assert [answer_after(g)[0] for g in (planned, -planned, planned)] == [True, False, True]


def test_the_engine_believes_what_it_is_told_was_executed(permissive):
    engine = RSDInferenceEngine(load_policy(permissive), mode="gated", execute_steps=1)
    observation = Observation(
        images={"agentview": FRAMES[0], "wrist": FRAMES[1]},
        proprio=np.array([0.5, 0, 0, 0, 0, 0, 0.04, -0.04], np.float32),
        instruction=INSTRUCTION,
    )
    draft = next(iter(engine.stream(observation))).actions[0]
    engine.executed(draft)
    assert engine.infer(observation).skipped
    assert engine.infer(observation).skipped, "its own chunk was executed, as far as it knows"
    engine.executed(-draft)
    assert not engine.infer(observation).skipped
