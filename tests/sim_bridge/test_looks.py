"""Domain randomisation: frames change, physics does not, and the next episode is as published."""

from __future__ import annotations

import numpy as np

from sim_bridge.libero_env import LiberoEnv

STEP = [0.3, 0.2, -0.4, 0.0, 0.1, 0.0, 1.0]


def test_looks_change_frames_alone_and_are_put_back() -> None:
    """An evaluation in an environment that had varied looks would otherwise see the last ones."""
    frames, states = [], []
    with LiberoEnv("libero_object", 0, image_size=64) as env:
        for looks, seed in ((False, 0), (True, 0), (True, 0), (True, 1), (False, 0)):
            env.reset(0, seed=seed, looks=looks)
            before = np.stack(list(env.observe().images.values())).astype(int)
            for _ in range(3):
                env.step(STEP, render=False)
            frames.append(before)
            states.append(env.sim.get_state().flatten())
    assert all(np.array_equal(state, states[0]) for state in states)
    assert np.array_equal(frames[0], frames[4]) and np.array_equal(frames[1], frames[2])
    for first, second in ((0, 1), (1, 3)):
        apart = np.abs(frames[first] - frames[second]).mean(axis=(1, 2, 3))
        assert apart.min() > 5.0, "a camera sees hardly anything of it"
        assert frames[second].std(axis=(1, 2, 3)).min() > 8.0, "nothing is left to be seen"
