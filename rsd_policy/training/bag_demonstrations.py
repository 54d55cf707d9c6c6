"""Demonstrations out of bags of a robot that somebody drove: observations as a policy sees them, and what was done.

Actions are the recorded commands, or follow from how the hand moved from step to step. They are in the units of the
contract, on a grid of its control period from the first image on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from rsd_policy.bags.playback import Playback, Recorded, Shown, read_recorded
from rsd_policy.bags.reader import Bag
from rsd_policy.errors import BagError, RSDError
from rsd_policy.images import resize_frame
from rsd_policy.observation import ACTION_DIM
from rsd_policy.robots.contract import ActionMeaning, Contract
from sim_bridge.demonstrations import Demonstration
from sim_bridge.demonstrations_libero import moving_rows

GRIPPER_TRAVEL_M = 0.004
"""A hand whose width changes by this much opens or closes."""

STILL_M = 0.0003
"""Noise of a hand that stands still."""

ANSWER_S = 0.5
"""So long after its command a hand has begun to move."""

LEAST_STEPS = 8

Command = tuple[int, NDArray[np.float32]]
"""Stamp in ns, and values [7] in action units; NaN where it says nothing."""


@dataclass
class Episode:
    """One episode of a bag on its grid of N control steps.

    Attributes:
        frames: uint8 [F, cameras, S, S, 3] and frame_steps [F]: images, and the step that each precedes.
        proprio: float32 [F, 8], state at the frames.
        actions: float32 [N, 7], in action units, not clipped.
        width: float64 [N + 1], opening of the hand at the steps, m.
        instruction: what was done.
    """

    frames: NDArray[np.uint8]
    frame_steps: NDArray[np.int64]
    proprio: NDArray[np.float32]
    actions: NDArray[np.float32]
    width: NDArray[np.float64]
    instruction: str

    def demonstration(self, suite: str, task: int, seed: int) -> Demonstration:
        """Without the steps in which nothing moves: a policy that imitates pauses stops."""
        actions = np.clip(self.actions, -1.0, 1.0)
        kept = moving_rows(actions)
        new_step = {int(step): i for i, step in enumerate(kept)}
        rows = [i for i, step in enumerate(self.frame_steps) if int(step) in new_step]
        if len(kept) < LEAST_STEPS or not rows:
            raise RSDError(f"expected at least {LEAST_STEPS} steps in which something moves, got {len(kept)}")
        return Demonstration(
            suite=suite,
            task=task,
            seed=seed,
            instruction=self.instruction,
            images=self.frames[rows],
            frame_steps=np.array([new_step[int(self.frame_steps[i])] for i in rows], np.int64),
            proprio=self.proprio[rows],
            actions=actions[kept],
            executed=actions[kept],
            noisy=np.zeros(len(kept), dtype=bool),
        )


def episodes_of(path: Path, contract: Contract, *, source: str, size: int, instruction: str = "") -> Iterator[Episode]:
    """The episodes of a bag.

    Args:
        source: of the actions: "commands" in the bag, "state" differences, or "auto": commands where there are any.
        size: height and width of the images, px.
        instruction: instead of what the bag says.

    Raises:
        RSDError: the bag cannot be read, has no commands, or the gripper's commands contradict the hand's width.
    """
    with Bag(path) as bag:
        recorded = read_recorded(bag, contract)
        if source == "auto":
            source = "commands" if recorded.commands else "state"
        if source == "commands" and not recorded.commands:
            raise RSDError(f"{path}: holds no commands on '{contract.action.commands}'; give --actions state")
        commands = recorded.commands if source == "commands" else []
        shown = Playback(bag, contract, Recorded(**vars(recorded) | {"chunks": {}}), instruction, period_s=0.0)
        found = False
        part: list[tuple[Shown, list[NDArray[np.uint8]]]] = []
        for moment in shown.observations():
            found = True
            if part and moment.context != part[-1][0].context:
                yield _episode(part, commands, contract)
                part = []
            images = [resize_frame(np.ascontiguousarray(image), size) for image in moment.observation.images.values()]
            part.append((_without_images(moment), images))
        if part:
            yield _episode(part, commands, contract)
        if not found:
            raise BagError(f"{path}: no observation in it{shown.why_nothing()}")


def _without_images(shown: Shown) -> Shown:
    """What is kept of a moment: not its messages, which are as large as the bag."""
    return Shown(shown.stamp, shown.time, shown.context, shown.task, shown.observation, shown.executed, ())


def _episode(part: Sequence[tuple[Shown, Any]], commands: Sequence[Command], contract: Contract) -> Episode:
    stamps = np.array([shown.stamp for shown, _ in part], np.int64)
    states = np.array([shown.observation.proprio for shown, _ in part], np.float64)
    return on_control_grid(
        stamps, states, [images for _, images in part], part[0][0].task.instruction, commands, contract
    )


def on_control_grid(
    stamps: NDArray[np.int64],
    states: NDArray[np.float64],
    images: Sequence[Sequence[NDArray[np.uint8]]],
    instruction: str,
    commands: Sequence[Command],
    contract: Contract,
) -> Episode:
    """An episode of M looks on the grid of the contract's control period.

    Args:
        stamps: [M], ns. states: [M, 8]. images: [M] of one uint8 [S, S, 3] per camera.
        commands: of the whole recording; empty: the actions are the differences of the states.

    Raises:
        RSDError: the episode is shorter than `LEAST_STEPS`.
    """
    period = round(contract.action.period_s * 1e9)
    steps = int((stamps[-1] - stamps[0]) // period)
    if steps < LEAST_STEPS:
        raise RSDError(f"expected an episode of at least {LEAST_STEPS} control steps, got {steps}")
    grid = stamps[0] + period * np.arange(steps + 1)
    resampled = _resample(stamps, states, grid)
    width = width_of(resampled)
    actions = _from_states(resampled, contract)
    actions[:, 6] = _gripper(width)
    if commands:
        given = _from_commands(commands, grid[:-1], period, contract.action)
        actions = np.where(np.isnan(given), actions, given).astype(np.float32)
    nearest = np.rint((stamps - stamps[0]) / period).astype(np.int64)
    rows = [int(np.flatnonzero(nearest == step)[0]) for step in np.unique(nearest) if step < steps]
    return Episode(
        frames=np.array([images[row] for row in rows]),
        frame_steps=nearest[rows],
        proprio=states[rows].astype(np.float32),
        actions=actions,
        width=width,
        instruction=instruction,
    )


def width_of(states: NDArray[np.float64]) -> NDArray[np.float64]:
    """Opening of the hand [N], m, in states [N, 8] with either sign of the fingers."""
    return np.asarray(np.abs(states[:, 6]) + np.abs(states[:, 7]))


def _resample(stamps: NDArray[np.int64], states: NDArray[np.float64], grid: NDArray[np.int64]) -> NDArray[np.float64]:
    """States [N, 8] on a grid: lines between positions, great arcs between rotations."""
    times = (stamps - stamps[0]) * 1e-9
    wanted = np.clip((grid - stamps[0]) * 1e-9, times[0], times[-1])
    out = np.stack([np.interp(wanted, times, states[:, i]) for i in range(states.shape[1])], axis=1)
    out[:, 3:6] = Slerp(times, Rotation.from_rotvec(states[:, 3:6]))(wanted).as_rotvec()
    return out


def _from_states(states: NDArray[np.float64], contract: Contract) -> NDArray[np.float32]:
    """The action of each step [N, 7] that moves the hand as it moved, along the axes of the robot's base."""
    meaning = contract.action
    to_base = Rotation.from_quat(contract.pose.base_rotation).inv()
    moves = to_base.apply(np.diff(states[:, :3], axis=0))
    turns = Rotation.from_rotvec(states[:, 3:6])
    turned = to_base.apply((turns[1:] * turns[:-1].inv()).as_rotvec())
    actions = np.zeros((len(states) - 1, ACTION_DIM), np.float32)
    actions[:, :3] = moves / meaning.translation_m
    actions[:, 3:6] = turned / meaning.rotation_rad
    return actions


def _from_commands(
    commands: Sequence[Command], grid: NDArray[np.int64], period: int, meaning: ActionMeaning
) -> NDArray[np.float32]:
    """The command of each step [N, 7]: the latest one before the step's middle; none for a whole period: no motion."""
    times = np.array([stamp for stamp, _ in commands], np.int64)
    values = np.array([value for _, value in commands], np.float32)
    latest = np.searchsorted(times, grid + period // 2, side="right") - 1
    actions = values[np.maximum(latest, 0)].copy()
    silent = (latest < 0) | (grid + period // 2 - times[np.maximum(latest, 0)] > period)
    actions[silent, :6] = 0.0
    actions[:, 6] *= meaning.gripper_sign
    return actions


def _gripper(width: NDArray[np.float64]) -> NDArray[np.float32]:
    """The command [N] that a hand of this width [N + 1] follows: +1 from where it begins to close, -1 to open."""
    command = np.zeros(len(width) - 1, np.float32)
    state, extreme, begins = -1.0, width[0], 0
    for step, value in enumerate(width[1:]):
        # how far the hand has come back from as far as it had opened (or closed)
        travel = (extreme - value) * -state
        if travel <= STILL_M:
            extreme, begins = (max if state < 0 else min)(extreme, value), step + 1
        elif travel > GRIPPER_TRAVEL_M:
            state = -state
            command[begins:step] = state
            extreme, begins = value, step + 1
        command[step] = state
    return command


def gripper_contradictions(episode: Episode, period_s: float) -> tuple[int, int]:
    """How often a change of the gripper's command was followed by the hand's moving that way, and the other way."""
    later = round(ANSWER_S / period_s)
    agree = against = 0
    command = np.sign(episode.actions[:, 6])
    for step in np.flatnonzero(np.diff(command) != 0) + 1:
        change = episode.width[min(step + later, len(episode.width) - 1)] - episode.width[step]
        if abs(change) > GRIPPER_TRAVEL_M / 2:
            agree += int(np.sign(change) == -command[step])
            against += int(np.sign(change) == command[step])
    return agree, against


def plot_gripper(episodes: Sequence[Episode], period_s: float, path: Path) -> None:
    """Width and command of the hand over time, so that a person sees which sign closes it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2 * len(episodes)), layout="constrained")
    axes = figure.subplots(len(episodes), 1, squeeze=False)[:, 0]
    for axis, episode in zip(axes, episodes, strict=True):
        times = np.arange(len(episode.width)) * period_s
        axis.plot(times, episode.width * 1e3, label="width, mm")
        other = axis.twinx()
        other.step(times[:-1], episode.actions[:, 6], where="post", color="#b00020", label="command (+1 closes)")
        other.set_ylim(-1.3, 1.3)
        axis.set_ylabel("mm")
        axis.set_title(episode.instruction, fontsize=9)
    axes[0].legend(loc="upper left", fontsize=7)
    axes[-1].set_xlabel("s (blue: width; red: command, +1 closes)")
    figure.savefig(path, dpi=90)
