"""What LIBERO's HDF5 layout leaves open: the task of a file, what a row of `obs` means, which rows move nothing.

Two scripts of public projects write it, and they differ:

- LIBERO's create_dataset.py stores in row j what `env.step` returned for action j: `obs` *follows* the action of its
  row. The group `data` has attributes, among them the task definition.
- OpenVLA-OFT's regenerate_libero_dataset.py stores in row j what was seen when action j was chosen: `obs` *precedes*
  the action of its row. The group `data` has no attributes; the name of the file tells the task.

In both, row j of `states` is MuJoCo's state before action j. A label that is off by a frame teaches a policy to lag, so
the files' own motion decides which of the two a file is, not its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.libero import BASE_SUITE
from sim_bridge.libero_assets import find_task

STILL = 1e-4
"""Norm of an arm command below which it moves nothing, as in the published filtering of LIBERO's demonstrations."""

FILE_ENDING = "_demo"
"""Of the names of both projects' files, behind the task's: `put_the_bowl_on_the_stove_demo.hdf5`."""

STEP = 0.05
"""s from one control step to the next (20 Hz)."""

LAGS = (-1, 0, 1, 2)
"""Rows by which `obs` is tried to be ahead of `states`; 0 and 1 are the two conventions."""

CLEARLY = 0.25
"""Share of the second best lag's squared error that the best one's may have. Recorded with robosuite 1.4.0 it is below
0.002: `obs` are sampled up to 2 ms before the end of a control step."""

NEEDED = ("actions", "states", "obs/joint_states", "obs/ee_pos", "obs/ee_ori", "obs/gripper_states")
"""Datasets of an episode without which it cannot be read; the images' names are checked by their reader."""


def task_of(path: Path, attributes: Any) -> tuple[str, int]:
    """Suite and index of the task that a file shows: from its task definition's name, else from its own.

    Raises:
        SimulationError: no suite has such a task.
        ValueError: a perturbed suite has it, whose tasks keep the names of those that they perturb.
    """
    definition = attributes.get("bddl_file_name")
    if definition is None:
        return find_task(path.stem.removesuffix(FILE_ENDING))
    check_trainable(PurePosixPath(str(definition)).parent.name)
    return find_task(PurePosixPath(str(definition)).stem)


def check_trainable(suite: str) -> None:
    """Whether what shows a task of this suite may be trained on.

    Raises:
        ValueError: it is one of LIBERO-PRO's.
    """
    if suite in BASE_SUITE:
        raise ValueError(f"expected no task of LIBERO-PRO, which is kept for evaluation; got suite {suite}")


def check_complete(episode: Any, images: Iterable[str]) -> None:
    """Whether an episode has all datasets, with a row for every action.

    Raises:
        ValueError: names what is missing or does not fit.
    """
    names = [*NEEDED, *(f"obs/{name}" for name in images)]
    if missing := [name for name in names if name not in episode]:
        raise ValueError(f"{episode.name}: expected {names}; missing {missing}")
    rows = {name: len(episode[name]) for name in names}
    if len(set(rows.values())) > 1:
        raise ValueError(f"{episode.name}: expected as many rows in each dataset, got {rows}")


def frame_lag(episodes: Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> int:
    """By how many rows `obs` is ahead of `states`: 0 when it precedes the action of its row, 1 when it follows it.

    The arm's motion between two rows of `obs` is compared with its motion in `states`. Differences and not positions,
    because the observations may come from a playback of the actions that has drifted from the recorded states.

    Args:
        episodes: `states` [N, 1 + nq + nv] (time in s, then the joint positions, the arm's 7 first) and
            `obs/joint_states` [N, 7] (rad) of each episode of a file.

    Raises:
        ValueError: the two do not say; the message tells why.
    """
    errors = np.zeros(len(LAGS))
    for states, joints in episodes:
        if states.ndim != 2 or states.shape[1] < 8 or joints.shape != (len(states), 7):
            raise ValueError(
                f"expected states [N, 8 or more] and obs/joint_states [N, 7], got {list(states.shape)} and "
                f"{list(joints.shape)}"
            )
        moved, seen = np.diff(states[:, 1:8], axis=0), np.diff(joints, axis=0)
        # rows between which others were left out tell of other motion
        consecutive = np.abs(np.diff(states[:, 0]) - STEP) < STEP / 5
        rows = np.arange(1, len(moved) - 2)
        rows = rows[np.all([consecutive[rows + lag] for lag in LAGS], axis=0)]
        errors += [np.square(seen[rows] - moved[rows + lag]).sum() for lag in LAGS]
    first, second = np.argsort(errors, kind="stable")[:2]
    if LAGS[first] not in (0, 1) or not errors[first] < CLEARLY * errors[second]:
        found = ", ".join(f"{lag}: {error:.2g}" for lag, error in zip(LAGS, errors, strict=True))
        raise ValueError(
            "cannot tell whether obs precedes or follows the action of its row; expected the arm's motion in "
            "obs/joint_states to be that in states, 0 rows (before the action) or 1 row (after it) ahead, and MuJoCo's "
            f"time in states[:, 0] to go on by {STEP} s; got a squared error (rad^2) per row ahead of {found}"
        )
    return LAGS[first]


def moving_rows(commands: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows of actions [N, 7] that move the arm or change the gripper's command; people's demonstrations pause."""
    moves = np.linalg.norm(commands[:, :-1], axis=1) > STILL
    moves[1:] |= commands[1:, -1] != commands[:-1, -1]
    return np.flatnonzero(moves)
