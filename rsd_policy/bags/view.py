"""A bag in Rerun: cameras, where the hand is, and where each chunk would take it, on one timeline."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.bags.playback import Playback, Shown
from rsd_policy.robots.contract import ActionMeaning

FINAL, DRAFT = (21, 101, 192), (230, 140, 0)
"""Colours of the final chunk and of the draft, RGB."""


def view_bag(rerun: Any, playback: Playback) -> int:
    """Log a bag's observations; returns how many.

    Args:
        rerun: the module, with a recording begun.
        playback: of the bag.
    """
    meaning = playback.contract.action
    recorded = playback.recorded
    count = 0
    for shown in playback.observations():
        rerun.set_time("stamp", duration=shown.stamp * 1e-9)
        _observation(rerun, shown)
        chunk = recorded.chunks.get(shown.stamp)
        if chunk is not None:
            _path(rerun, "robot/final", shown, chunk.actions, meaning, FINAL)
            rerun.log("chunk/inference_ms", rerun.Scalars(chunk.inference_ms))
            rerun.log("chunk/accepted", rerun.Scalars(float(chunk.accepted)))
            rerun.log("chunk/skipped", rerun.Scalars(float(chunk.skipped)))
        draft = recorded.drafts.get(shown.stamp)
        if draft is not None:
            _path(rerun, "robot/draft", shown, draft, meaning, DRAFT)
        count += 1
    return count


def _observation(rerun: Any, shown: Shown) -> None:
    for name, image in shown.observation.images.items():
        rerun.log(f"cameras/{name}", rerun.Image(np.ascontiguousarray(image)).compress(jpeg_quality=85))
    position = shown.observation.proprio[:3]
    rerun.log("robot/hand", rerun.Points3D([position], radii=0.01))
    rerun.log("robot/gripper", rerun.Scalars(float(shown.observation.proprio[6])))
    rerun.log("task", rerun.TextLog(shown.task.instruction))


def _path(
    rerun: Any, name: str, shown: Shown, actions: NDArray[np.float32], meaning: ActionMeaning, colour: tuple[int, ...]
) -> None:
    """Where the chunk's translations would take the hand, if every step were reached."""
    moves = np.cumsum(actions[:, :3], axis=0) * meaning.translation_m
    points = np.concatenate([np.zeros((1, 3)), moves]) + shown.observation.proprio[:3]
    rerun.log(name, rerun.LineStrips3D([points], colors=[colour], radii=0.003))
