"""The inference thread with a real engine: what counts as the start of something new."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState

from rsd_policy import RSDInferenceEngine, load_policy
from rsd_policy.nodes.inference_worker import InferenceWorker, Request
from rsd_policy.nodes.messages import GRIPPER_JOINTS, WORLD_FRAME, image_to_msg, to_stamp
from rsd_policy.robots.composition import Composer
from rsd_policy.robots.contract import load_contract

ROBOT = load_contract()
IMAGE = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)


class CountingEngine(RSDInferenceEngine):
    resets = 0

    def reset(self) -> None:
        type(self).resets += 1
        super().reset()


def request(episode: int, activity: int) -> Request:
    pose = PoseStamped()
    pose.header.frame_id = WORLD_FRAME
    pose.pose.orientation.w = 1.0
    joints = JointState(name=list(GRIPPER_JOINTS), position=[0.04, -0.04])
    image = image_to_msg(IMAGE, to_stamp(0), "")
    messages = {"agentview": image, "wrist": image, "pose": pose, "joints": joints}
    return Request(to_stamp(0), episode, activity, "pick up the bowl", messages, Composer(ROBOT))


@pytest.fixture
def worker(untrained):
    done = threading.Semaphore(0)
    failures = []

    def on_chunk(request, chunk):
        if chunk.verified:
            done.release()
        return True

    def on_failure(*what):
        failures.append(what)
        done.release()

    worker = InferenceWorker(
        lambda: CountingEngine(load_policy(untrained), mode="speculative", device="cpu"),
        ROBOT,
        image_size=64,
        check=lambda request, observation: None,
        on_chunk=on_chunk,
        on_error=on_failure,
        on_death=on_failure,
    )
    worker.ready.result()

    def answer(episode, activity):
        worker.submit(request(episode, activity))
        assert done.acquire(timeout=60)
        assert failures == []
        return CountingEngine.resets

    yield answer
    worker.close()


def test_an_episode_a_goal_and_an_activation_each_start_anew(worker):
    first = worker(1, 1)
    assert worker(1, 1) == first, "the same episode goes on"
    assert worker(1, 2) == first + 1, "a new goal or activation"
    assert worker(2, 2) == first + 2, "a new episode"
    assert worker(2, 2) == first + 2
