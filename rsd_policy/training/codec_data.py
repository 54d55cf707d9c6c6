"""Actions of demonstrations, without their images: what the codec is fitted on and measured with.

Reads the HDF5 files of `rsd collect` and LIBERO's own (sim_bridge/demonstrations.py tells their layout). Both hold
OSC_POSE actions in [-1, 1] with the gripper at -1 open, +1 close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import ActionError, RSDError
from rsd_policy.observation import ACTION_DIM
from sim_bridge.demonstrations import SUFFIX, open_demonstrations
from sim_bridge.demonstrations_libero import moving_rows


@dataclass(frozen=True)
class ActionEpisode:
    """The actions of one demonstration.

    Attributes:
        task: what was done, the same for all episodes of a task.
        actions: float32 [N, 7], what the demonstrator wanted at each control step, action units.
        executed: float32 [N, 7], what was sent to the robot.
        noisy: bool [N], where the two differ on purpose: what follows answers to another state.
    """

    task: str
    actions: NDArray[np.float32]
    executed: NDArray[np.float32]
    noisy: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.actions.ndim != 2 or self.actions.shape[1] != ACTION_DIM or self.executed.shape != self.actions.shape:
            raise ActionError(f"{self.task}: expected actions [N, {ACTION_DIM}], got {list(self.actions.shape)}")
        if not np.isfinite(self.actions).all() or np.abs(self.actions).max(initial=0.0) > 1.0 + 1e-6:
            raise ActionError(
                f"{self.task}: expected finite actions in [-1, 1], got a largest magnitude of "
                f"{np.abs(self.actions).max(initial=0.0)}"
            )


def read_actions(directory: Path) -> list[ActionEpisode]:
    """Every demonstration below a directory, in the order of their paths.

    Raises:
        RSDError: there is none, or a file is not a demonstration.
    """
    episodes: list[ActionEpisode] = []
    for path in sorted(directory.rglob(f"*{SUFFIX}")):
        # `rsd collect` names the placement behind the task; LIBERO keeps a task a file.
        task = f"{path.parent.name}/{path.stem.partition('-seed')[0]}"
        with open_demonstrations(path) as data:
            numbers = sorted(int(key.removeprefix("demo_")) for key in data)
            episodes += [_episode(task, data[f"demo_{n}"]) for n in numbers]
    if not episodes:
        raise RSDError(f"{directory}: expected demonstrations (*{SUFFIX}), found none; collect some with `rsd collect`")
    return episodes


def valid_chunks(episodes: Sequence[ActionEpisode], horizon: int) -> NDArray[np.float32]:
    """Every window of consecutive actions which answer to one state.

    Returns:
        float32 [M, horizon, 7]: windows within an episode without a noisy step before their last.

    Raises:
        RSDError: no episode is that long.
    """
    parts = [np.zeros((0, horizon, ACTION_DIM), dtype=np.float32)]
    for episode in episodes:
        starts = chunk_starts(episode, horizon)
        parts.append(episode.actions[starts[:, None] + np.arange(horizon)])
    chunks = np.concatenate(parts)
    if len(chunks) == 0:
        raise RSDError(f"expected an episode with {horizon} consecutive noiseless steps, found none in {len(episodes)}")
    return chunks


def chunk_starts(episode: ActionEpisode, horizon: int) -> NDArray[np.int64]:
    """First steps of the episode's valid chunks, see `valid_chunks`."""
    starts = np.arange(max(0, len(episode.actions) - horizon + 1))
    before_last = episode.noisy[starts[:, None] + np.arange(horizon - 1)]
    return starts[~before_last.any(axis=1)]


def _episode(task: str, group: Any) -> ActionEpisode:
    executed = np.asarray(group["actions"], dtype=np.float32)
    if "expert_actions" in group:
        wanted = np.asarray(group["expert_actions"], dtype=np.float32)
        return ActionEpisode(task, wanted, executed, np.any(wanted != executed, axis=1))
    # As in training, what moves nothing is left out of people's demonstrations.
    kept = np.clip(executed[moving_rows(executed)], -1.0, 1.0)
    return ActionEpisode(task, kept, kept, np.zeros(len(kept), dtype=np.bool_))
