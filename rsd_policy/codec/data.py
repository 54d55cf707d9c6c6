"""Actions of demonstrations, without their images: what the codec is fitted on and measured with.

Reads directories of `rsd collect` (.npz) and LIBERO's own demonstrations (.hdf5, `data/demo_*/actions`); both hold
OSC_POSE actions in [-1, 1] with the gripper at -1 open, +1 close.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import ActionError, RSDError, SetupError
from rsd_policy.observation import ACTION_DIM


@dataclass(frozen=True)
class ActionEpisode:
    """The actions of one demonstration.

    Attributes:
        name: suite, task and episode, unique within a directory.
        actions: float32 [N, 7], what the demonstrator wanted at each control step, action units.
        executed: float32 [N, 7], what was sent to the robot.
        noisy: bool [N], where the two differ on purpose: what follows answers to another state.
    """

    name: str
    actions: NDArray[np.float32]
    executed: NDArray[np.float32]
    noisy: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.actions.ndim != 2 or self.actions.shape[1] != ACTION_DIM or self.executed.shape != self.actions.shape:
            raise ActionError(f"{self.name}: expected actions [N, {ACTION_DIM}], got {list(self.actions.shape)}")
        if not np.isfinite(self.actions).all() or np.abs(self.actions).max(initial=0.0) > 1.0 + 1e-6:
            raise ActionError(
                f"{self.name}: expected finite actions in [-1, 1], got a largest magnitude of "
                f"{np.abs(self.actions).max(initial=0.0)}"
            )


def read_actions(directory: Path) -> list[ActionEpisode]:
    """Every demonstration below a directory, in the order of their paths.

    Raises:
        RSDError: there is none, or a file is not a demonstration.
    """
    episodes: list[ActionEpisode] = []
    for path in sorted(directory.rglob("*")):
        if path.suffix == ".npz":
            episodes.append(_collected(path))
        elif path.suffix in (".hdf5", ".h5"):
            episodes += _official(path)
    if not episodes:
        raise RSDError(
            f"{directory}: expected demonstrations (.npz of `rsd collect` or LIBERO's .hdf5), found none; "
            "collect some with `rsd collect`"
        )
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


def _collected(path: Path) -> ActionEpisode:
    try:
        with np.load(path, allow_pickle=False) as file:
            return ActionEpisode(f"{path.parent.name}/{path.stem}", file["actions"], file["executed"], file["noisy"])
    except (OSError, ValueError, KeyError) as error:
        raise RSDError(f"{path}: expected a demonstration: {error}; remove it and collect again") from error


def _official(path: Path) -> Iterator[ActionEpisode]:
    try:
        import h5py
    except ImportError as error:
        raise SetupError(f"{path}: reading LIBERO's HDF5 demonstrations needs h5py; pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            demonstrations = sorted(file["data"], key=lambda name: int(name.rpartition("_")[2]))
            for name in demonstrations:
                actions = np.asarray(file["data"][name]["actions"], dtype=np.float32)
                noisy = np.zeros(len(actions), dtype=np.bool_)
                yield ActionEpisode(f"{path.stem}/{name}", actions, actions, noisy)
    except (OSError, ValueError, KeyError) as error:
        raise RSDError(f"{path}: expected LIBERO demonstrations at data/demo_*/actions: {error}") from error
