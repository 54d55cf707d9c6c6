"""The end of a goal as the arm sees it: policy_node and action_executor as processes, the commands on the wire."""

from __future__ import annotations

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient
from rclpy.clock import Clock, ClockType
from rsd_msgs.action import ExecuteInstruction
from rsd_msgs.msg import Action, EpisodeStatus
from rsd_msgs.msg import ActionChunk as ActionChunkMsg
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from rsd_policy.nodes.messages import ARM_JOINTS, GRIPPER_JOINTS, WORLD_FRAME, image_to_msg
from rsd_policy.nodes.runtime import LATCHED
from tests.ros.probe import ACTIVATE, CONFIGURE

FRAME = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
PERIOD_S = 0.05


class Robot:
    """Shows observations at 20 Hz of the wall clock, in a running episode, with a latched instruction on the topic."""

    def __init__(self, probe):
        self.probe = probe
        self.cameras = [probe.publisher(Image, f"{name}/image_raw") for name in ("agentview", "wrist")]
        self.poses = probe.publisher(PoseStamped, "eef_pose")
        self.joints = probe.publisher(JointState, "joint_states")
        self.episodes = probe.publisher(EpisodeStatus, "episode")
        self.instructions = probe.publisher(String, "instruction", LATCHED)
        self.chunks = probe.record(ActionChunkMsg, "action_chunk")
        self.commands = probe.record(Action, "action")
        self.client = ActionClient(probe.node, ExecuteInstruction, "execute_instruction")
        probe.spin_until(self.client.server_is_ready, 30, "the action server")
        probe.spin_until(lambda: probe.node.count_publishers("action") == 1, 30, "the commands")
        self.step = 0
        probe.node.create_timer(PERIOD_S, self.show, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def show(self):
        stamp = self.probe.node.get_clock().now().to_msg()
        pose = PoseStamped()
        pose.header.frame_id, pose.header.stamp = WORLD_FRAME, stamp
        pose.pose.position.x, pose.pose.orientation.w = 0.5, 1.0
        joints = JointState(name=[*ARM_JOINTS, *GRIPPER_JOINTS], position=[0.1] * 7 + [0.04, -0.04])
        joints.header.stamp = stamp
        status = EpisodeStatus(episode=1, state=EpisodeStatus.RUNNING, instruction="close the drawer", step=self.step)
        status.header.stamp = stamp
        self.step += 1
        for camera in self.cameras:
            camera.publish(image_to_msg(FRAME, stamp, ""))
        self.poses.publish(pose)
        self.joints.publish(joints)
        self.episodes.publish(status)

    def send(self, timeout_s=0.0):
        goal = ExecuteInstruction.Goal(instruction="pick up the plate", timeout_s=timeout_s)
        future = self.client.send_goal_async(goal)
        self.probe.spin_until(future.done, 20, "an answer to the goal")
        assert future.result().accepted
        self.commands.clear()
        self.probe.spin_until(self.moving, 20, "commands that move")
        return future.result()

    def moving(self):
        return any(any(command.values[:6]) for command in self.commands)

    def result(self, goal):
        future = goal.get_result_async()
        self.probe.spin_until(future.done, 20, "the goal's result")
        return future.result()

    def assert_nothing_moves(self):
        # what was on its way to the probe when the end was announced
        self.probe.spin_for(2 * PERIOD_S)
        self.commands.clear()
        self.chunks.clear()
        self.probe.spin_for(16 * PERIOD_S)  # twice what is left of any chunk
        assert not self.moving()
        assert len(self.commands) > 0, "the arm is held still"
        assert not any(chunk.horizon for chunk in self.chunks)


@pytest.fixture(scope="module")
def robot(probe, start, untrained):
    start("rsd_policy.nodes.policy_node", "policy_node", policy=str(untrained), clock="realtime")
    start("rsd_policy.nodes.action_executor", "action_executor", clock="realtime")
    robot = Robot(probe)
    robot.instructions.publish(String(data="wave"))
    for node in ("policy_node", "action_executor"):
        assert probe.transition(node, CONFIGURE)
        assert probe.transition(node, ACTIVATE)
    probe.spin_until(robot.moving, 20, "commands that move, by the episode's instruction")
    return robot


def test_a_cancelled_goal_moves_nothing_any_more(robot):
    """The node went on by the topic's or the episode's instruction, and the executor by the chunk that it had."""
    goal = robot.send()
    robot.probe.wait_executing("execute_instruction", goal)
    cancel = goal.cancel_goal_async()
    robot.probe.spin_until(cancel.done, 20, "an answer to the cancel")
    robot.assert_nothing_moves()
    assert robot.result(goal).status == GoalStatus.STATUS_CANCELED


def test_a_goal_out_of_time_moves_nothing_any_more(robot):
    goal = robot.send(timeout_s=1.5)
    assert robot.result(goal).status == GoalStatus.STATUS_ABORTED
    robot.assert_nothing_moves()


def test_chunks_with_stamps_of_another_clock_are_called_so(robot):
    """In front of a bag the executor only said that there was no chunk."""
    chunk = ActionChunkMsg(episode=1, horizon=8, dof=7, actions=[0.5] * 56, verified=True)
    chunk.header.stamp.sec = 7
    robot.probe.publisher(ActionChunkMsg, "action_chunk").publish(chunk)
    diagnostics = robot.probe.diagnostics
    text = "this node's clock is not that of the observations (use_sim_time is False)"
    robot.probe.spin_until(lambda: text in diagnostics["action_executor: commands"].message, 10, "the reason")


def test_a_new_instruction_moves_the_arm_again(robot):
    assert not robot.moving()
    robot.instructions.publish(String(data="wave again"))
    robot.probe.spin_until(robot.moving, 20, "commands that move")
