"""Domain randomisation: colours, light and cameras of a simulation, varied for one episode.

What is varied is put back when the next episode begins (`_CHANGED_BY_EPISODES` in sim_bridge/libero_sim.py). Physics
never changes. Randomising appearance so that reality looks like one more variation: Tobin et al. 2017.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TINT, SHADE = 0.4, 0.2
"""Largest change of a colour, as a share: each channel's for itself, and of all alike for what can be moved, which
instructions name by its colour."""

LIGHT, LIGHT_AIM = 0.3, 0.3
"""Largest change of a light's strength, as a share, and of its direction, per axis of the unit vector."""

CAMERA_SHIFT, HAND_CAMERA_SHIFT, CAMERA_TURN, CAMERA_ZOOM = 0.03, 0.005, 0.05, 3.0
"""Largest displacement (m, per axis) of a camera and of one on a moving body, which would look into the hand; largest
turn (rad, per axis) and change of the vertical field of view (degrees)."""

FREE = 6
"""Degrees of freedom of a body that can be moved anywhere."""

PLAIN = 0.3
"""How often an episode's colours stay as they are."""

VARIED = ("geom_rgba", "mat_rgba", "light_diffuse", "light_ambient", "light_dir", "cam_pos", "cam_quat", "cam_fovy")
"""Fields of MuJoCo's model that are varied."""


def vary_looks(model: Any, rng: np.random.Generator) -> None:
    """Change the looks of a simulation.

    Args:
        model: MuJoCo's, or robosuite's view of it.
        rng: the same state gives the same looks.
    """
    if rng.random() >= PLAIN:
        movable = model.body_dofnum[model.body_rootid[model.geom_bodyid]] == FREE
        of_movables = np.isin(np.arange(len(model.mat_rgba)), model.geom_matid[movable])
        for colours, plainly in ((model.mat_rgba, of_movables), (model.geom_rgba, movable)):
            tint = rng.uniform(1.0 - TINT, 1.0 + TINT, (len(colours), 3))
            shade = rng.uniform(1.0 - SHADE, 1.0 + SHADE, (len(colours), 1))
            colours[:, :3] = np.clip(colours[:, :3] * np.where(plainly[:, None], shade, tint), 0.0, 1.0)
    strength = rng.uniform(1.0 - LIGHT, 1.0 + LIGHT)
    model.light_diffuse[:] = np.clip(model.light_diffuse * strength * rng.uniform(0.9, 1.1, 3), 0.0, 1.0)
    model.light_ambient[:] = np.clip(model.light_ambient * rng.uniform(1.0 - LIGHT, 1.0 + LIGHT), 0.0, 1.0)
    aim = model.light_dir + rng.uniform(-LIGHT_AIM, LIGHT_AIM, model.light_dir.shape)
    model.light_dir[:] = aim / np.linalg.norm(aim, axis=1, keepdims=True)
    shift = np.where(model.cam_bodyid == 0, CAMERA_SHIFT, HAND_CAMERA_SHIFT)[:, None]
    model.cam_pos[:] += shift * rng.uniform(-1.0, 1.0, model.cam_pos.shape)
    turns = rng.uniform(-CAMERA_TURN, CAMERA_TURN, (len(model.cam_quat), 3))
    model.cam_quat[:] = [_turned(q, turn) for q, turn in zip(model.cam_quat, turns, strict=True)]
    model.cam_fovy[:] += rng.uniform(-CAMERA_ZOOM, CAMERA_ZOOM, model.cam_fovy.shape)


def _turned(quaternion: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """A unit quaternion (wxyz) turned by a small rotation vector [3], rad, in its own frame."""
    w, *axis = quaternion
    small = np.append(1.0, vector / 2) / np.linalg.norm(np.append(1.0, vector / 2))
    a, b = np.array(axis), small[1:]
    return np.append(w * small[0] - a @ b, w * b + small[0] * a + np.cross(a, b))
