"""Demonstration files: one episode a file, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import RSDError

SUFFIX = ".npz"


@dataclass(frozen=True)
class Demonstration:
    """One successful episode.

    Attributes:
        suite: LIBERO suite.
        task: index of the task in the suite.
        seed: seed of the random placement.
        instruction: what the robot was told.
        images: uint8 [F, cameras, S, S, 3], upright RGB, agentview then wrist.
        frame_steps: int64 [F], control step at which each frame was seen (frame i precedes action frame_steps[i]).
        proprio: float32 [F, 8], state at these steps.
        actions: float32 [N, 7], the expert's action at each control step.
        executed: float32 [N, 7], what was sent to the robot.
        noisy: bool [N], where executed differs from actions on purpose.
    """

    suite: str
    task: int
    seed: int
    instruction: str
    images: NDArray[np.uint8]
    frame_steps: NDArray[np.int64]
    proprio: NDArray[np.float32]
    actions: NDArray[np.float32]
    executed: NDArray[np.float32]
    noisy: NDArray[np.bool_]


def demonstration_path(directory: Path, suite: str, task: int, seed: int) -> Path:
    """Where the episode of a seed is kept."""
    return directory / suite / f"task{task:02d}-seed{seed:08d}{SUFFIX}"


def write_demonstration(directory: Path, demonstration: Demonstration) -> Path:
    """Write an episode; a reader sees all of it or nothing."""
    d = demonstration
    path = demonstration_path(directory, d.suite, d.task, d.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".partial{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, **vars(d))
    temporary.replace(path)
    return path


def read_demonstrations(directory: Path) -> Iterator[Demonstration]:
    """All episodes below a directory.

    Raises:
        RSDError: a file is not a demonstration.
    """
    for path in sorted(directory.rglob(f"*{SUFFIX}")):
        try:
            with np.load(path, allow_pickle=False) as file:
                values = {key: file[key] for key in Demonstration.__dataclass_fields__}
        except (OSError, ValueError, KeyError) as error:
            raise RSDError(f"{path}: expected a demonstration: {error}; remove it and collect again") from error
        for key, kind in (("suite", str), ("instruction", str), ("task", int), ("seed", int)):
            values[key] = kind(values[key].item())
        yield Demonstration(**values)
