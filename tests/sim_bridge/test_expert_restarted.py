"""An expert that looks at the scene anew at every chunk, as beside a policy, goes on with what it has in the hand."""

from __future__ import annotations

import numpy as np
import pytest

from sim_bridge.expert import ScriptedExpert
from sim_bridge.expert.scene import Scene
from sim_bridge.libero_env import LiberoEnv

CHUNK = 8


def steps_to_success(env: LiberoEnv, seed: int, restart_every: int) -> int | None:
    env.reset(None, seed=seed)
    expert = ScriptedExpert(env)
    for step in range(env.max_steps):
        if step % restart_every == 0:
            expert.reset()
        if env.step(expert.act(), render=False):
            return step + 1
    return None


@pytest.mark.parametrize(
    ("suite", "task", "seed"),
    [
        pytest.param("libero_10", 3, 12, id="what is already in the drawer is let go"),
        pytest.param("libero_10", 3, 700001, id="a drawer is pushed where it was begun"),
        pytest.param("libero_goal", 3, 11, id="what is in the way of a shut drawer is set aside"),
        pytest.param("libero_goal", 5, 700002, id="fingers that drag a plate are not put down anew"),
    ],
)
def test_a_restarted_expert_takes_no_longer(suite: str, task: int, seed: int) -> None:
    with LiberoEnv(suite, task, render=False) as env:
        undisturbed = steps_to_success(env, seed, env.max_steps)
        restarted = steps_to_success(env, seed, CHUNK)
    assert undisturbed is not None and restarted is not None
    assert restarted <= 1.1 * undisturbed


def test_fingers_that_have_just_begun_to_close_go_on() -> None:
    """A policy's chunk that ended with the first command to close was labelled with opening the fingers again."""
    with LiberoEnv("libero_goal", 6, render=False) as env:
        env.reset(None, seed=700001)
        expert, scene = ScriptedExpert(env), Scene(env.raw)
        expert.reset()
        for _ in range(env.max_steps):
            if (action := expert.act())[6] > 0.0:
                break
            env.step(action, render=False)
        assert expert.phase == "close"
        # beside the grasp, with open fingers: too far off to begin
        for _ in range(20):
            env.step(np.array([0.1, 0, 0, 0, 0, 0, -1], np.float32), render=False)
            expert.reset()
            if expert.act()[6] < 0.0:
                break
        assert expert.phase == "approach"
        env.step(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), render=False)
        scene.refresh()
        assert scene.finger_opening() > 0.075
        expert.reset()
        assert expert.act()[6] > 0.0
