"""policy_node as a process of its own, in front of cameras that do what real ones do: stop, lie, send rubbish."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient
from rsd_msgs.action import ExecuteInstruction
from rsd_msgs.msg import ActionChunk as ActionChunkMsg
from rsd_msgs.msg import EpisodeStatus
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from rsd_policy import Observation, RSDInferenceEngine, load_policy
from rsd_policy.nodes.messages import (
    ARM_JOINTS,
    GRIPPER_JOINTS,
    WORLD_FRAME,
    chunk_from_msg,
    image_to_msg,
    to_nanoseconds,
    to_stamp,
)
from rsd_policy.nodes.runtime import LATCHED
from rsd_policy.robots.contract import load_contract
from rsd_policy.robots.state import compose_state
from tests.ros.probe import ACTIVATE, CONFIGURE, DEACTIVATE

INSTRUCTION = "pick up the bowl"
FRAMES = np.random.default_rng(3).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
ROBOT = load_contract()
INFERENCE = "policy_node: inference"


class Robot:
    """The cameras and joints in front of the node."""

    clock = itertools.count(1_000_000_000, 50_000_000)

    def __init__(self, probe):
        self.probe = probe
        self.cameras = [probe.publisher(Image, f"{name}/image_raw") for name in ("agentview", "wrist")]
        self.poses = probe.publisher(PoseStamped, "eef_pose")
        self.joints = probe.publisher(JointState, "joint_states")
        self.chunks = probe.record(ActionChunkMsg, "action_chunk")
        self.instructions = probe.publisher(String, "instruction", LATCHED)
        probe.spin_until(lambda: probe.node.count_publishers("action_chunk") == 1, 30, "the node's topic")

    def show(self, *, wrist=True, encoding="rgb8", x=0.5, wrist_late_ns=0):
        """One moment; returns its stamp and the proprioceptive state."""
        stamp = to_stamp(next(self.clock))
        pose = PoseStamped()
        pose.header.frame_id = WORLD_FRAME
        pose.header.stamp = stamp
        pose.pose.position.x, pose.pose.orientation.w = x, 1.0
        joints = JointState(name=[*ARM_JOINTS, *GRIPPER_JOINTS], position=[0.1] * 7 + [0.04, -0.04])
        joints.header.stamp = stamp
        for i, camera in enumerate(self.cameras[: 2 if wrist else 1]):
            msg = image_to_msg(FRAMES[i], stamp, "")
            msg.encoding = encoding
            msg.header.stamp = to_stamp(to_nanoseconds(stamp) + i * wrist_late_ns)
            camera.publish(msg)
        self.poses.publish(pose)
        self.joints.publish(joints)
        return to_nanoseconds(stamp), compose_state(pose, joints, ROBOT.pose, ROBOT.gripper)

    def follow(self):
        """Have an instruction followed: the end of a goal leaves none, and inputs that stop end a goal."""
        self.instructions.publish(String(data=INSTRUCTION))
        self.wait_final(self.show_until_answered())

    def show_until_answered(self):
        shown = []
        for _ in range(40):
            shown.append(self.show()[0])
            self.probe.spin_for(0.1)
            # on a busy machine the answer may come after the next observation
            answered = [stamp for stamp in shown if self.of(stamp)]
            if answered:
                return answered[-1]
        raise AssertionError("expected a chunk within 40 observations")

    def of(self, stamp):
        return [c for c in self.chunks if c.horizon and to_nanoseconds(c.header.stamp) == stamp]

    def wait_final(self, stamp):
        self.probe.spin_until(lambda: any(c.verified for c in self.of(stamp)), 20, "a final chunk")
        return self.of(stamp)

    def wait_diagnostics(self, level, text):
        diagnostics = self.probe.diagnostics

        def there():
            return (
                INFERENCE in diagnostics
                and diagnostics[INFERENCE].level == level
                and text in diagnostics[INFERENCE].message
            )

        self.probe.spin_until(there, 20, f"'{text}' in diagnostics, last {diagnostics.get(INFERENCE)}")


@pytest.fixture(scope="module")
def robot(probe, start, untrained):
    start("rsd_policy.nodes.policy_node", "policy_node", policy=str(untrained), clock="realtime")
    robot = Robot(probe)
    robot.show()
    probe.spin_for(0.5)
    assert robot.chunks == [], "an unconfigured node does nothing"
    assert probe.transition("policy_node", CONFIGURE)
    assert probe.transition("policy_node", ACTIVATE)
    robot.instructions.publish(String(data=INSTRUCTION))
    probe.spin_for(0.5)
    return robot


def test_each_observation_gives_a_provisional_and_a_verified_chunk_as_the_engine_does(robot, untrained):
    stamp, proprio = robot.show()
    chunks = robot.wait_final(stamp)
    engine = RSDInferenceEngine(load_policy(untrained), mode="speculative")
    images = {"agentview": FRAMES[0], "wrist": FRAMES[1]}
    expected = list(engine.stream(Observation(images=images, proprio=proprio, instruction=INSTRUCTION)))
    assert len(chunks) == len(expected) == 2
    for msg, chunk in zip(chunks, expected, strict=True):
        received = chunk_from_msg(msg)
        assert received.actions.tobytes() == chunk.actions.tobytes()
        assert (received.verified, received.accepted, received.levels) == (chunk.verified, chunk.accepted, chunk.levels)
        assert msg.mode == "speculative" and msg.inference_ms > 0


def test_a_camera_that_stops_is_named_and_no_chunk_comes(robot):
    stamps = [robot.show(wrist=False)[0] for _ in range(3)]
    robot.wait_diagnostics(DiagnosticStatus.ERROR, "wrist/image_raw did not come")
    assert not any(robot.of(stamp) for stamp in stamps)
    robot.wait_final(robot.show()[0])
    robot.wait_diagnostics(DiagnosticStatus.OK, "inferring")


def test_stamps_a_millisecond_apart_are_called_so(robot):
    """No chunk came, and the inputs were said not to have come."""
    for _ in range(3):
        robot.show(wrist_late_ns=1_000_000)
    robot.wait_diagnostics(DiagnosticStatus.ERROR, "/wrist/image_raw came 1.000 ms later")
    robot.wait_final(robot.show()[0])


def test_an_instruction_of_a_volatile_publisher_is_followed(robot, untrained):
    """`ros2 topic pub --once /instruction ...` waited for ever: its default is volatile, the subscription was not."""
    publisher = robot.probe.publisher(String, "instruction")
    publisher.publish(String(data="up up up the plate"))
    robot.probe.spin_for(0.3)
    stamp, proprio = robot.show()
    received = robot.wait_final(stamp)[-1]
    engine = RSDInferenceEngine(load_policy(untrained), mode="speculative")
    images = {"agentview": FRAMES[0], "wrist": FRAMES[1]}
    expected = engine.infer(Observation(images=images, proprio=proprio, instruction="up up up the plate"))
    assert chunk_from_msg(received).actions.tobytes() == expected.actions.tobytes()
    robot.probe.node.destroy_publisher(publisher)
    robot.follow()


def test_when_all_inputs_stop_that_is_an_error_too(robot):
    robot.wait_final(robot.show()[0])
    robot.wait_diagnostics(DiagnosticStatus.OK, "inferring")
    everything = "/agentview/image_raw, /wrist/image_raw, /eef_pose, /joint_states did not come"
    robot.wait_diagnostics(DiagnosticStatus.ERROR, everything)
    robot.wait_final(robot.show()[0])
    robot.wait_diagnostics(DiagnosticStatus.OK, "inferring")


def test_time_that_goes_back_starts_anew(robot, monkeypatch):
    """As when a bag is played in a loop."""
    robot.wait_final(robot.show()[0])
    monkeypatch.setattr(Robot, "clock", itertools.count(700_000_000_000, 50_000_000))
    robot.wait_final(robot.show()[0])
    monkeypatch.undo()
    stamp, _ = robot.show()
    assert stamp < 700_000_000_000
    robot.wait_final(stamp)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"x": float("nan")}, "ObservationError: proprio: expected finite numbers"),
        ({"encoding": "16UC1"}, "agentview/image_raw: '16UC1' is a depth image"),
    ],
)
def test_rubbish_is_reported_and_gives_no_chunk(robot, fault, text):
    stamp, _ = robot.show(**fault)
    robot.wait_diagnostics(DiagnosticStatus.ERROR, text)
    assert robot.of(stamp) == []
    robot.wait_final(robot.show()[0])


def test_a_failing_node_says_so_to_the_goal_in_execution(robot):
    robot.follow()
    client = ActionClient(robot.probe.node, ExecuteInstruction, "execute_instruction")
    goal = send(robot, client, INSTRUCTION)
    robot.show(x=float("nan"))
    result = finish(robot, goal)
    assert result.status == GoalStatus.STATUS_ABORTED
    assert "expected finite numbers" in result.result.message


def send(robot, client, instruction, timeout_s=0.0, feedback=None):
    robot.probe.spin_until(client.server_is_ready, 20, "the action server")
    future = client.send_goal_async(
        ExecuteInstruction.Goal(instruction=instruction, timeout_s=timeout_s),
        feedback_callback=None if feedback is None else lambda msg: feedback.append(msg.feedback),
    )
    robot.probe.spin_until(future.done, 20, "an answer to the goal")
    goal = future.result()
    if goal.accepted:
        robot.probe.wait_executing("execute_instruction", goal)
    return goal


def finish(robot, goal):
    future = goal.get_result_async()
    robot.probe.spin_until(future.done, 20, "the goal's result")
    return future.result()


def test_a_goal_gives_feedback_counts_its_chunks_and_can_be_cancelled(robot):
    robot.follow()
    client = ActionClient(robot.probe.node, ExecuteInstruction, "execute_instruction")
    feedback = []
    goal = send(robot, client, "pick up the plate", feedback=feedback)
    assert goal.accepted
    assert not send(robot, client, "another one").accepted, "one instruction at a time"
    for i in range(3):
        robot.wait_final(robot.show()[0])
        robot.probe.spin_until(lambda i=i: len(feedback) > i, 10, "feedback")
    assert [f.chunks for f in feedback] == [1, 2, 3]
    assert all(f.inference_ms > 0 and 0 <= f.acceptance_rate <= 1 for f in feedback)
    cancel = goal.cancel_goal_async()
    robot.probe.spin_until(cancel.done, 20, "an answer to the cancel")
    result = finish(robot, goal)
    assert (result.status, result.result.success, result.result.chunks) == (GoalStatus.STATUS_CANCELED, False, 3)


def test_the_goal_s_instruction_is_the_one_that_is_followed(robot, untrained):
    robot.follow()
    client = ActionClient(robot.probe.node, ExecuteInstruction, "execute_instruction")
    goal = send(robot, client, "up up up the plate")
    stamp, proprio = robot.show()
    received = robot.wait_final(stamp)[-1]
    engine = RSDInferenceEngine(load_policy(untrained), mode="speculative")
    images = {"agentview": FRAMES[0], "wrist": FRAMES[1]}
    expected = engine.infer(Observation(images=images, proprio=proprio, instruction="up up up the plate"))
    other = engine.infer(Observation(images=images, proprio=proprio, instruction=INSTRUCTION))
    assert expected.actions.tobytes() != other.actions.tobytes(), "the instruction matters to this policy"
    assert chunk_from_msg(received).actions.tobytes() == expected.actions.tobytes()
    goal.cancel_goal_async()
    assert finish(robot, goal).status == GoalStatus.STATUS_CANCELED


def test_a_goal_ends_with_its_time(robot):
    robot.follow()
    client = ActionClient(robot.probe.node, ExecuteInstruction, "execute_instruction")
    result = finish(robot, send(robot, client, INSTRUCTION, timeout_s=0.3))
    assert result.status == GoalStatus.STATUS_ABORTED
    assert result.result.message == "not done within 0.3 s"


def test_a_goal_succeeds_when_the_simulated_task_does(robot):
    robot.follow()
    statuses = robot.probe.publisher(EpisodeStatus, "episode")
    client = ActionClient(robot.probe.node, ExecuteInstruction, "execute_instruction")
    goal = send(robot, client, INSTRUCTION)
    statuses.publish(EpisodeStatus(episode=1, state=EpisodeStatus.SUCCESS, instruction=INSTRUCTION))
    result = finish(robot, goal)
    assert (result.status, result.result.success) == (GoalStatus.STATUS_SUCCEEDED, True)
    robot.probe.node.destroy_publisher(statuses)


def test_a_goal_does_not_succeed_by_an_episode_with_another_task(robot):
    """Its result was the episode's success, whatever the goal's instruction was."""
    robot.follow()
    statuses = robot.probe.publisher(EpisodeStatus, "episode")
    client = ActionClient(robot.probe.node, ExecuteInstruction, "execute_instruction")
    goal = send(robot, client, "pick up the plate")
    statuses.publish(EpisodeStatus(episode=2, state=EpisodeStatus.SUCCESS, instruction=INSTRUCTION))
    result = finish(robot, goal)
    assert (result.status, result.result.success) == (GoalStatus.STATUS_ABORTED, False)
    assert INSTRUCTION in result.result.message
    robot.probe.node.destroy_publisher(statuses)


def test_an_episode_whose_publisher_is_gone_is_followed_no_more(robot):
    """A bag that ended in an episode, or a simulation that died, kept /instruction from being heard for good."""
    statuses = robot.probe.publisher(EpisodeStatus, "episode")
    statuses.publish(EpisodeStatus(episode=3, state=EpisodeStatus.RUNNING, instruction="close the drawer"))
    robot.probe.spin_for(0.3)
    robot.instructions.publish(String(data=INSTRUCTION))
    assert robot.wait_final(robot.show()[0])[-1].episode == 3
    robot.probe.node.destroy_publisher(statuses)
    robot.probe.spin_for(0.5)
    assert robot.wait_final(robot.show()[0])[-1].episode == 0, "outside of an episode, by the topic's instruction"


@pytest.mark.parametrize(("instruction", "timeout_s"), [("", 0.0), ("  ", 0.0), ("x" * 1001, 0.0), (INSTRUCTION, -1.0)])
def test_senseless_goals_are_refused(robot, instruction, timeout_s):
    client = ActionClient(robot.probe.node, ExecuteInstruction, "execute_instruction")
    assert not send(robot, client, instruction, timeout_s).accepted


def test_after_deactivate_no_chunk_comes_and_the_goal_ends(robot):
    client = ActionClient(robot.probe.node, ExecuteInstruction, "execute_instruction")
    goal = send(robot, client, INSTRUCTION)
    assert robot.probe.transition("policy_node", DEACTIVATE)
    assert finish(robot, goal).status == GoalStatus.STATUS_ABORTED
    stamp, _ = robot.show()
    robot.probe.spin_for(0.5)
    assert robot.of(stamp) == []
    assert not send(robot, client, INSTRUCTION).accepted
    assert robot.probe.transition("policy_node", ACTIVATE)
    robot.follow()


def test_a_checkpoint_that_cannot_be_used_fails_to_configure_with_the_reason(probe, start, untrained, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in untrained.iterdir():
        data = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            data[-1] ^= 1
        (broken / file.name).write_bytes(data)
    start("rsd_policy.nodes.policy_node", "altered", policy=str(broken), clock="realtime")
    assert not probe.transition("altered", CONFIGURE)
    probe.spin_until(
        lambda: (
            "altered: inference" in probe.diagnostics
            and probe.diagnostics["altered: inference"].level == DiagnosticStatus.ERROR
        ),
        10,
        "the reason in diagnostics",
    )
    assert "sha256" in probe.diagnostics["altered: inference"].message


def test_the_gate_keeps_the_alpha_of_the_parameter_or_the_node_says_which_it_cannot(probe, start, untrained):
    options = {"policy": str(untrained), "mode": "gated", "clock": "realtime"}
    start("rsd_policy.nodes.policy_node", "kept", alpha=0.06, **options)
    assert probe.transition("kept", CONFIGURE)
    start("rsd_policy.nodes.policy_node", "not_kept", alpha=0.04, **options)
    assert not probe.transition("not_kept", CONFIGURE)
    probe.spin_until(
        lambda: (
            "not_kept: inference" in probe.diagnostics
            and probe.diagnostics["not_kept: inference"].level == DiagnosticStatus.ERROR
        ),
        10,
        "the reason in diagnostics",
    )
    assert "alpha = 0.04" in probe.diagnostics["not_kept: inference"].message


def test_a_lockstep_node_that_nobody_asks_says_so(robot, start, untrained):
    """In front of a bag without episodes: no chunk, no word, diagnostics OK."""
    start("rsd_policy.nodes.policy_node", "lockstep_node", policy=str(untrained))
    for transition in (CONFIGURE, ACTIVATE):
        assert robot.probe.transition("lockstep_node", transition)
    diagnostics = robot.probe.diagnostics
    for _ in range(30):
        robot.show()
        robot.probe.spin_for(0.2)
        found = diagnostics.get("lockstep_node: inference")
        if found is not None and found.level == DiagnosticStatus.WARN:
            break
    assert "needs clock 'realtime'" in found.message
