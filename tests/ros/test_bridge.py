"""sim_bridge as a process of its own: what it publishes, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rosgraph_msgs.msg import Clock
from rsd_msgs.msg import Action, EpisodeStatus
from rsd_msgs.srv import ResetEpisode
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray

from rsd_policy.nodes.messages import to_nanoseconds
from rsd_policy.robots.contract import IMAGE, load_contract
from rsd_policy.robots.images import decode_image
from rsd_policy.robots.state import compose_state
from sim_bridge.libero_env import CAMERAS, LiberoEnv
from sim_bridge.nodes.robot_frames import frames

ROBOT = load_contract()
SUITE, TASK, INIT = "libero_spatial", 2, 7
PERIOD_NS = 50_000_000
CLOSE = [0.3, 0.0, -0.2, 0.0, 0.1, 0.0, 1.0]


class Robot:
    """Everything that the bridge publishes."""

    def __init__(self, probe):
        self.probe = probe
        self.statuses = probe.record(EpisodeStatus, "episode")
        self.images = {name: probe.record(Image, f"{name}/image_raw") for name in ("agentview", "wrist")}
        self.infos = {name: probe.record(CameraInfo, f"{name}/camera_info") for name in ("agentview", "wrist")}
        self.view = probe.record(Image, "agentview/unmirrored/image_raw")
        self.view_infos = probe.record(CameraInfo, "agentview/unmirrored/camera_info")
        self.poses = probe.record(PoseStamped, "eef_pose")
        self.joints = probe.record(JointState, "joint_states")
        self.clock = probe.record(Clock, "/clock")
        self.states = probe.record(Float64MultiArray, "sim_state")
        self.actions = probe.publisher(Action, "action")

    def reset(self, suite=SUITE, task=TASK, init_state=INIT, seed=0):
        request = ResetEpisode.Request(suite=suite, task=task, init_state=init_state, seed=seed)
        return self.probe.call(ResetEpisode, "sim_bridge/reset", request)

    def act(self, values, step, remaining=1, episode=None):
        episode = self.statuses[-1].episode if episode is None else episode
        self.actions.publish(Action(values=values, episode=episode, step=step, remaining=remaining))

    def step(self, values, step, remaining=1):
        """Execute a command and return the state after it."""
        self.act(values, step, remaining)
        self.probe.spin_until(lambda: self.statuses[-1].step == step + 1, 20, f"the state after step {step}")
        return self.statuses[-1]

    def privileged(self, episode, step):
        """The simulation's state at a moment."""

        def found():
            return [s.data[2:] for s in self.states if list(s.data[:2]) == [episode, step]]

        self.probe.spin_until(lambda: bool(found()), 10, f"sim_state of step {step}")
        return found()[0]

    def at(self, messages, stamp):
        """The message of a stamp."""
        self.probe.spin_until(
            lambda: any(to_nanoseconds(m.header.stamp) == stamp for m in messages), 10, f"a message of {stamp} ns"
        )
        return next(m for m in messages if to_nanoseconds(m.header.stamp) == stamp)


@pytest.fixture(scope="module")
def robot(probe, start):
    start("sim_bridge.nodes.bridge_node", "sim_bridge", publish_privileged_state=True)
    robot = Robot(probe)
    response = robot.reset()
    assert response.accepted, response.message
    probe.spin_until(lambda: len(robot.statuses) > 0, 10, "the first state")
    return robot


@pytest.fixture(scope="module")
def reference():
    with LiberoEnv(SUITE, TASK) as env:
        env.reset(INIT)
        yield env


def test_the_first_state_asks_for_a_command(robot, reference):
    status = robot.statuses[0]
    assert (status.state, status.step, status.observation_due) == (EpisodeStatus.RUNNING, 0, True)
    assert (status.suite, status.task, status.init_state, status.seed) == (SUITE, TASK, INIT, 0)
    assert (status.instruction, status.max_steps) == (reference.instruction, 220)


def test_the_robot_looks_as_in_process_bit_for_bit(robot, reference):
    expected = reference.observe()
    stamp = to_nanoseconds(robot.statuses[0].header.stamp)
    for name, messages in robot.images.items():
        assert np.array_equal(decode_image(robot.at(messages, stamp), IMAGE, name), expected.images[name])
    pose, joints = robot.at(robot.poses, stamp), robot.at(robot.joints, stamp)
    assert compose_state(pose, joints, ROBOT.pose, ROBOT.gripper).tobytes() == expected.proprio.tobytes()
    assert np.array_equal(joints.position[:7], reference.robot_state().joint_positions)
    state = robot.privileged(robot.statuses[0].episode, 0)
    assert np.array_equal(state, reference.privileged_state())


def test_camera_info_projects_the_world_to_where_the_image_shows_it(robot, reference):
    """Plate and cabinet are where K and the camera's pose say: the frame is mirrored, so fx is negative."""
    stamp = to_nanoseconds(robot.statuses[0].header.stamp)
    info = robot.at(robot.infos["agentview"], stamp)
    assert (info.width, info.height) == (256, 256)
    assert info.header.frame_id == robot.at(robot.images["agentview"], stamp).header.frame_id
    k = np.reshape(info.k, (3, 3))
    sim = reference.sim
    camera = sim.model.camera_name2id("agentview")
    to_camera = np.diag([1.0, -1.0, -1.0]) @ sim.data.cam_xmat[camera].reshape(3, 3).T  # optical: x right, y down
    image = reference.observe().images["agentview"].astype(int)

    def project(body):
        point = sim.data.body_xpos[sim.model.body_name2id(body)]
        u, v, w = k @ to_camera @ (point - sim.data.cam_xpos[camera])
        return u / w, v / w

    u, v = project("plate_1_main")
    patch = image[int(v) - 3 : int(v) + 4, int(u) - 3 : int(u) + 4].reshape(-1, 3)
    assert patch.min() > 150 and patch.std(axis=0).max() < 25, "the plate is plain and bright"
    u, v = project("wooden_cabinet_1_main")
    patch = image[int(v) - 3 : int(v) + 4, int(u) - 3 : int(u) + 4].reshape(-1, 3)
    assert patch.mean() < 90, "the cabinet is dark"


def test_people_get_the_view_unmirrored_with_a_positive_fx(robot):
    """A negative fx, though right, mirrors what RViz draws over the image."""
    stamp = to_nanoseconds(robot.statuses[0].header.stamp)
    view, info = robot.at(robot.view, stamp), robot.at(robot.view_infos, stamp)
    mirrored, before = robot.at(robot.images["agentview"], stamp), robot.at(robot.infos["agentview"], stamp)
    assert np.array_equal(decode_image(view, IMAGE, "view"), decode_image(mirrored, IMAGE, "image")[:, ::-1])
    assert info.k[0] > 0 and info.p[0] > 0 and info.header == before.header == view.header
    ray = np.array([0.1, 0.2, 1.0])
    u, v, _ = np.reshape(info.k, (3, 3)) @ ray
    mirrored_u, mirrored_v, _ = np.reshape(before.k, (3, 3)) @ ray
    assert (u, v) == pytest.approx((view.width - 1 - mirrored_u, mirrored_v))


def test_frames_lead_from_the_world_to_base_hand_and_cameras(reference):
    """They were unconnected: nothing could be drawn beside anything else."""
    sim = reference.sim

    def homogeneous(position, matrix):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = np.reshape(matrix, (3, 3)), position
        return pose

    def of(frame):
        x, y, z, w = frame.quaternion_xyzw
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        return homogeneous(frame.position, rows)

    tree = {frame.child: frame for frame in frames(reference)}
    world = {"world": np.eye(4)}
    for child, frame in tree.items():
        world[child] = world[frame.parent] @ of(frame)
    assert set(tree) == {"robot0_base", "robot0_hand", "agentview_optical_frame", "wrist_optical_frame"}
    assert tree["wrist_optical_frame"].parent == "robot0_hand", "the wrist camera moves with the hand"
    robot = reference.robot_state()
    assert world["robot0_hand"][:3, 3] == pytest.approx(robot.eef_position)
    assert tree["robot0_base"].position == pytest.approx([-0.66, 0.0, 0.912], abs=0.01)
    for name, camera_name in CAMERAS.items():
        camera = sim.model.camera_name2id(camera_name)
        axes = sim.data.cam_xmat[camera].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])
        expected = homogeneous(sim.data.cam_xpos[camera], axes)
        assert world[f"{name}_optical_frame"] == pytest.approx(expected, abs=1e-6)


def test_a_command_moves_one_step_and_only_the_last_of_a_chunk_renders(robot, reference):
    first = to_nanoseconds(robot.statuses[0].header.stamp)
    for step, remaining in ((0, 2), (1, 1), (2, 0)):
        status = robot.step(CLOSE, step, remaining)
        reference.step(np.array(CLOSE, np.float32), render=remaining == 0)
        assert status.observation_due == (remaining == 0)
        assert np.array_equal(status.executed, np.array(CLOSE, np.float32))
        assert to_nanoseconds(status.header.stamp) == first + (step + 1) * PERIOD_NS
    stamp = first + 3 * PERIOD_NS
    expected = reference.observe()
    for name, messages in robot.images.items():
        assert np.array_equal(decode_image(robot.at(messages, stamp), IMAGE, name), expected.images[name])
        assert {to_nanoseconds(m.header.stamp) for m in messages} == {first, stamp}, "frames that nobody reads"
    pose, joints = robot.at(robot.poses, stamp), robot.at(robot.joints, stamp)
    assert compose_state(pose, joints, ROBOT.pose, ROBOT.gripper).tobytes() == expected.proprio.tobytes()


def test_clock_runs_with_the_simulation(robot):
    def now():
        return to_nanoseconds(robot.clock[-1].clock) == to_nanoseconds(robot.statuses[-1].header.stamp)

    robot.probe.spin_until(now, 10, "the clock of the latest status")
    times = [to_nanoseconds(c.clock) for c in robot.clock]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("values", "message"),
    [([np.nan] + [0.0] * 6, "finite"), ([0.0, 1.5] + [0.0] * 5, "[-1, 1]"), ([np.inf] * 7, "finite")],
)
def test_a_bad_command_is_refused_and_the_episode_waits(robot, reference, values, message):
    step = robot.statuses[-1].step
    count = len(robot.statuses)
    robot.act(values, step)
    robot.probe.spin_until(lambda: len(robot.statuses) > count and robot.statuses[-1].message, 10, "a refusal")
    assert message in robot.statuses[-1].message
    assert robot.statuses[-1].step == step
    refusal = robot.statuses[-1].message
    robot.probe.spin_until(
        lambda: robot.probe.diagnostics["sim_bridge: episode"].message == refusal, 10, "the refusal in diagnostics"
    )
    # and it goes on exactly as if nothing had been sent
    status = robot.step(CLOSE, step)
    reference.step(np.array(CLOSE, np.float32), render=False)
    assert status.message == ""
    assert np.array_equal(robot.privileged(status.episode, status.step), reference.privileged_state())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"suite": "libero_moon"}, "expected one of libero_spatial"),
        ({"task": 10}, "task"),
        ({"task": -1}, "task"),
        ({"init_state": 50}, "expected 0..49"),
        ({"init_state": -2}, "expected 0..49"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
    ],
)
def test_a_wrong_reset_is_refused_and_the_episode_goes_on(robot, reference, request_, message):
    before = robot.statuses[-1]
    response = robot.reset(**request_)
    assert not response.accepted
    assert message in response.message, response.message
    status = robot.step(CLOSE, before.step)
    reference.step(np.array(CLOSE, np.float32), render=False)
    assert (status.episode, status.state) == (before.episode, EpisodeStatus.RUNNING)
    assert np.array_equal(robot.privileged(status.episode, status.step), reference.privileged_state())


def test_commands_of_another_episode_or_step_move_nothing(robot):
    status = robot.statuses[-1]
    robot.act(CLOSE, status.step, episode=status.episode + 1)
    robot.act(CLOSE, status.step - 1)
    robot.probe.spin_for(0.5)
    assert robot.statuses[-1].step == status.step


def test_a_lost_message_is_asked_for_again(robot):
    """Nobody answers: the same state comes again, with everything that belongs to it."""
    status = robot.statuses[-1]
    robot.probe.spin_for(0.2)
    count, poses = len(robot.statuses), len(robot.poses)
    robot.probe.spin_until(
        lambda: len(robot.statuses) >= count + 2 and len(robot.poses) >= poses + 2, 20, "two repetitions"
    )
    assert robot.statuses[-1] == status
    assert robot.poses[-1] == robot.poses[poses - 1]


def test_a_new_reset_ends_the_running_episode_and_time_runs_on(robot):
    before = robot.statuses[-1]
    response = robot.reset(init_state=-1, seed=5)
    assert response.accepted and response.episode == before.episode + 1
    robot.probe.spin_until(lambda: robot.statuses[-1].episode == response.episode, 10, "the new episode")
    aborted = [s for s in robot.statuses if s.episode == before.episode][-1]
    assert aborted.state == EpisodeStatus.ABORTED
    status = robot.statuses[-1]
    assert (status.init_state, status.seed, status.step) == (-1, 5, 0)
    assert to_nanoseconds(status.header.stamp) > to_nanoseconds(aborted.header.stamp)
