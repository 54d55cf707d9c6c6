"""Demonstration files: HDF5 in the layout of LIBERO's own, which are read as well.

What `rsd collect` writes is one episode a file (written whole or not at all), with `data/demo_0` as in LIBERO's
create_dataset.py (actions, states, robot_states, rewards, dones; obs/agentview_rgb, eye_in_hand_rgb, ee_pos, ee_ori,
ee_states, gripper_states, joint_states; images turned by 180 degrees as robosuite renders them), and four additions:

- `expert_actions`: what the expert would have done at each control step; `actions` is what was executed.
- `pose`: the state at each row of `obs` in the form of `Observation.pose`.
- `frame_steps`: the control step that each row of `obs` precedes. With a frame at every step (`--every 1`) `obs` has as
  many rows as `actions`, as in LIBERO's files; otherwise fewer.
- attributes `suite`, `task`, `seed` and `pilot` of `data`.

Other projects' files (sim_bridge/demonstrations_libero.py) hold many episodes of people. Rows whose action moves
nothing are left out, as the published fine-tuning sets do: a policy that imitates pauses stops.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import RSDError, SimulationError
from rsd_policy.files import whole_file
from rsd_policy.observation import ACTION_DIM
from sim_bridge.demonstrations_libero import check_complete, check_trainable, frame_lag, moving_rows, task_of
from sim_bridge.libero_assets import task_spec

SUFFIX = ".hdf5"

IMAGE_NAMES = ("agentview_rgb", "eye_in_hand_rgb")
"""LIBERO's names of the cameras, in the order of `Demonstration.images`."""

FEW_FILES = 100
"""Below this, starting processes takes longer than reading."""


@dataclass(frozen=True)
class Demonstration:
    """One successful episode.

    Attributes:
        suite: LIBERO suite.
        task: index of the task in the suite.
        seed: seed of the random placement; for LIBERO's own files the number of the episode.
        instruction: what the robot was told.
        images: uint8 [F, cameras, S, S, 3], upright RGB, agentview then wrist.
        frame_steps: int64 [F], control step at which each frame was seen (frame i precedes action frame_steps[i]).
        proprio: float32 [F, 8], state at these steps.
        actions: float32 [N, 7], the expert's action at each control step.
        executed: float32 [N, 7], what was sent to the robot.
        noisy: bool [N], where executed differs from actions on purpose.
        pilot: checkpoint that drove a part of it (DAgger), empty without one.
        collected: recorded here with the scripted expert; False for another project's file.
        pose: float32 [F, 10], the state as `Observation.pose`; None in files that do not keep it.
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
    pilot: str = ""
    collected: bool = True
    pose: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class SimulatorTrace:
    """What LIBERO's layout holds beyond what a policy reads.

    Attributes:
        problem: LIBERO's name of the problem class, e.g. "libero_tabletop_manipulation".
        name: of the task. definition: the text of its BDDL file.
        quaternions: float64 [F, 4], orientation of the hand at each frame, scalar last.
        joints: float64 [F, 7], arm joints at each frame, rad.
        states: float64 [N, 1 + nq + nv], MuJoCo's time, positions and velocities before each action.
    """

    problem: str
    name: str
    definition: str
    quaternions: NDArray[np.float64]
    joints: NDArray[np.float64]
    states: NDArray[np.float64]


def demonstration_path(directory: Path, suite: str, task: int, seed: int) -> Path:
    """Where the episode of a seed is kept."""
    return directory / suite / f"task{task:02d}-seed{seed:08d}{SUFFIX}"


def write_demonstration(directory: Path, demonstration: Demonstration, trace: SimulatorTrace | None = None) -> Path:
    """Write an episode; a reader sees all of it or nothing. A real robot's has no trace."""
    path = demonstration_path(directory, demonstration.suite, demonstration.task, demonstration.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        data = file.create_group("data")
        data.attrs.update(_attributes(demonstration) | ({} if trace is None else _simulated(demonstration, trace)))
        _write_episode(data.create_group("demo_0"), demonstration, trace)
    return path


def _attributes(d: Demonstration) -> dict[str, Any]:
    return {
        "problem_info": json.dumps({"language_instruction": d.instruction}),
        "macros_image_convention": "opengl",
        "num_demos": 1,
        "total": len(d.actions),
        "suite": d.suite,
        "task": d.task,
        "seed": d.seed,
        "pilot": d.pilot,
    }


def _simulated(d: Demonstration, trace: SimulatorTrace) -> dict[str, Any]:
    bddl = f"{d.suite}/{trace.name}.bddl"
    problem = {"problem_name": trace.problem, "domain_name": "robosuite", "language_instruction": d.instruction}
    size = d.images.shape[2]
    arguments = {"camera_heights": size, "camera_widths": size, "control_freq": 20, "robots": ["Panda"]}
    environment = {"type": 1, "env_name": trace.problem, "problem_name": trace.problem, "bddl_file": bddl}
    return {
        "env_name": trace.problem,
        "problem_info": json.dumps(problem),
        "bddl_file_name": bddl,
        "bddl_file_content": trace.definition,
        "env_args": json.dumps({**environment, "env_kwargs": arguments}),
    }


def _write_episode(group: Any, d: Demonstration, trace: SimulatorTrace | None) -> None:
    position, axis_angle, gripper = np.split(d.proprio, [3, 6], axis=1)
    last = np.zeros(len(d.actions), dtype=np.uint8)
    last[-1] = 1
    group.attrs["num_samples"] = len(d.actions)
    group["actions"], group["expert_actions"], group["frame_steps"] = d.executed, d.actions, d.frame_steps
    if d.pose is not None:
        group["pose"] = d.pose
    group["rewards"], group["dones"] = last, last
    observations = group.create_group("obs")
    for index, name in enumerate(IMAGE_NAMES):
        observations[name] = d.images[:, index, ::-1, ::-1]
    observations["ee_pos"], observations["ee_ori"], observations["gripper_states"] = position, axis_angle, gripper
    observations["ee_states"] = d.proprio[:, :6]
    if trace is not None:
        group.attrs["init_state"] = trace.states[0]
        group["states"] = trace.states
        group["robot_states"] = np.concatenate([gripper, position, trace.quaternions], axis=1)
        observations["joint_states"] = trace.joints


def read_demonstrations(
    directory: Path, processes: int = 1, share: tuple[int, int] = (0, 1)
) -> Iterator[Demonstration]:
    """All episodes of all HDF5 files below a directory, those of `rsd collect` and LIBERO's own.

    Args:
        processes: that read files at the same time; the order of the episodes is the same for any number.
        share: (i, n) for the i-th of n disjoint parts that hold all files together. A file's part depends on its path
            in the directory alone.

    Raises:
        RSDError: a file is not a demonstration.
    """
    part, parts = share
    paths = [
        path
        for path in sorted(directory.rglob(f"*{SUFFIX}"))
        if zlib.crc32(str(path.relative_to(directory)).encode()) % parts == part
    ]
    if processes == 1 or len(paths) < FEW_FILES:
        for path in paths:
            yield from _read_path(path)
        return
    # spawn and not fork: the caller may hold a CUDA context, which does not survive a fork
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for episodes in pool.map(_read_path, paths, chunksize=4):
            yield from episodes


@contextlib.contextmanager
def open_demonstrations(path: Path) -> Iterator[Any]:
    """The group `data` of a file, open for reading.

    Raises:
        RSDError: it is no HDF5 file, has no such group, or the code within found that it is not what it should be.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file["data"]
    except (OSError, ValueError, KeyError, SimulationError) as error:
        raise RSDError(
            f"{path}: expected demonstrations in LIBERO's layout: {error}; move the file out of the folder, or make or "
            "fetch it again"
        ) from error


def _read_path(path: Path) -> list[Demonstration]:
    with open_demonstrations(path) as data:
        return list(_read_file(path, data))


def count_demonstrations(directory: Path) -> int:
    """How many episodes `read_demonstrations` gives; 0 for a directory that is not there.

    Raises:
        RSDError: a file is not a demonstration.
    """
    count = 0
    for path in sorted(directory.rglob(f"*{SUFFIX}")):
        with open_demonstrations(path) as data:
            count += len(data)
    return count


def _read_file(path: Path, data: Any) -> Iterator[Demonstration]:
    names = sorted(data, key=lambda name: int(name.removeprefix("demo_")))
    own = [name for name in names if "expert_actions" in data[name]]
    others = [name for name in names if name not in own]
    for name in own:
        yield _read_own(data.attrs, data[name])
    if others:
        suite, task = task_of(path, data.attrs)
        for name in others:
            check_complete(data[name], IMAGE_NAMES)
        lag = frame_lag((data[f"{name}/states"][()], data[f"{name}/obs/joint_states"][()]) for name in others)
        for name in others:
            yield _read_other(suite, task, int(name.removeprefix("demo_")), data[name], lag)


def _read_own(attributes: Any, group: Any) -> Demonstration:
    actions, executed = group["expert_actions"][()], group["actions"][()]
    suite, task = str(attributes["suite"]), int(attributes["task"])
    check_trainable(suite)
    return Demonstration(
        suite=suite,
        task=task,
        seed=int(attributes["seed"]),
        instruction=str(json.loads(attributes["problem_info"])["language_instruction"]),
        images=_images(group["obs"]),
        frame_steps=group["frame_steps"][()],
        proprio=_proprio(group["obs"]),
        actions=actions,
        executed=executed,
        noisy=np.any(actions != executed, axis=1),
        pilot=str(attributes.get("pilot", "")),
        pose=group["pose"][()] if "pose" in group else None,
    )


def _read_other(suite: str, task: int, number: int, group: Any, lag: int) -> Demonstration:
    commands = group["actions"][()].astype(np.float32)
    if commands.ndim != 2 or commands.shape[1] != ACTION_DIM:
        raise ValueError(f"{group.name}: expected actions [N, {ACTION_DIM}], got {list(commands.shape)}")
    kept = moving_rows(commands)
    frames = kept[kept >= lag] - lag
    actions = np.clip(commands[frames + lag], -1.0, 1.0)
    return Demonstration(
        suite=suite,
        task=task,
        seed=number,
        instruction=task_spec(suite, task).instruction,
        images=_images(group["obs"])[frames],
        frame_steps=np.arange(len(frames), dtype=np.int64),
        proprio=_proprio(group["obs"])[frames],
        actions=actions,
        executed=actions,
        noisy=np.zeros(len(frames), dtype=bool),
        collected=False,
    )


def _images(observations: Any) -> NDArray[np.uint8]:
    """uint8 [F, cameras, S, S, 3], upright."""
    shapes = {name: observations[name].shape for name in IMAGE_NAMES}
    shape = shapes[IMAGE_NAMES[0]]
    if any(other != shape for other in shapes.values()) or len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"{observations.name}: expected RGB images of one size, [N, H, W, 3], got {shapes}")
    images = np.empty((shape[0], len(IMAGE_NAMES), *shape[1:]), dtype=np.uint8)
    for index, name in enumerate(IMAGE_NAMES):
        images[:, index] = observations[name][()][:, ::-1, ::-1]
    return images


def _proprio(observations: Any) -> NDArray[np.float32]:
    parts = [observations[name][()] for name in ("ee_pos", "ee_ori", "gripper_states")]
    return np.concatenate(parts, axis=1).astype(np.float32)
