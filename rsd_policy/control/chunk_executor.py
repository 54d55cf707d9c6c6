"""Turn action chunks into one command per control tick: alignment by stamp, limits, hold.

A pure state machine without clock, thread or ROS. The in-process evaluation loop and the ROS node `action_executor` run
the same object, so that the same chunks give the same commands in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsd_policy.errors import ActionError, NonFiniteError
from rsd_policy.observation import ACTION_DIM, GRIPPER

JUMP_BACK_S = 1.0
"""A chunk that is older than the current one by more than this did not come late: time itself went back (a bag that
starts again, a clock that was set)."""


@dataclass(frozen=True)
class Command:
    """What the robot is told for one control tick.

    Attributes:
        values: float32 [7], the arm within its limits, in action units (LIBERO: OSC_POSE units, gripper -1 open, +1
            close).
        remaining: commands that the chunk still holds after this one; 0 means that the next tick needs a new
            observation. Always 0 for a hold.
        verified: the chunk it comes from was verified. True for a hold: not moving needs no model.
        clipped: a limit changed the motion of the arm.
        hold: zero motion with the last gripper command, because there was nothing to execute.
    """

    values: NDArray[np.float32]
    remaining: int
    verified: bool
    clipped: bool = False
    hold: bool = False


class ChunkExecutor:
    """Hands out the commands of the newest chunk, one per control tick.

    Step i of a chunk belongs to the tick at `chunk stamp + i * period`: a chunk that arrives late is entered at the
    step that is due now, and the steps before it are never executed. In lockstep time stands still during inference, so
    every chunk is entered at step 0.
    """

    def __init__(
        self,
        *,
        period: float = 0.05,
        execute_steps: int = 8,
        limits: ArrayLike = 1.0,
        stale_periods: int = 2,
    ) -> None:
        """Start empty: before the first chunk there is no command, not even for the gripper.

        Args:
            period: control period, s (LIBERO: 20 Hz).
            execute_steps: how many steps of each chunk are executed before a new observation is due; chunks shorter
                than this are executed whole.
            limits: largest magnitude per degree of freedom of the arm, action units: one number or [6]. Commands are
                clipped. They are not the gripper's, which is open or closed and not fast or slow.
            stale_periods: this many ticks in a row without a step to execute mean that the policy is stale.

        Raises:
            ValueError: a setting is out of range.
        """
        if not (math.isfinite(period) and period > 0):
            raise ValueError(f"period: expected seconds > 0, got {period}")
        if execute_steps < 1:
            raise ValueError(f"execute_steps: expected at least 1, got {execute_steps}")
        if stale_periods < 1:
            raise ValueError(f"stale_periods: expected at least 1, got {stale_periods}")
        bound = np.broadcast_to(np.asarray(limits, dtype=np.float32), (GRIPPER,)).copy()
        if not np.all(np.isfinite(bound)) or np.any(bound <= 0):
            raise ValueError(f"limits: expected finite numbers > 0, got {bound.tolist()}")
        self.period = period
        self.execute_steps = execute_steps
        self.limits = bound
        self.stale_periods = stale_periods
        self.reset()

    def reset(self) -> None:
        """Forget everything, for a simulation that starts anew: its hand is where the reset put it."""
        self.drop()
        self._gripper: np.float32 | None = None

    def drop(self) -> None:
        """Forget the chunk. The gripper's last command stays: a hand that holds something must not open."""
        self._actions: NDArray[np.float32] | None = None
        self._stamp = -math.inf
        self._verified = False
        self._executable = 0
        self._holds = 0

    @property
    def stale(self) -> bool:
        """No step was due for `stale_periods` ticks in a row."""
        return self._holds >= self.stale_periods

    def set_chunk(self, actions: ArrayLike | Sequence[float], *, stamp: float, verified: bool) -> bool:
        """Take a chunk; it replaces the current one unless that is newer, or the verified form of the same.

        A chunk that is older by more than `JUMP_BACK_S` says that time went back, and replaces the current one too.

        Args:
            actions: [T, 7], action units.
            stamp: when its observation was made, s.
            verified: the main head produced or confirmed it.

        Returns:
            False when the chunk was out of date and ignored.

        Raises:
            NonFiniteError: an entry is NaN or infinite; the current chunk is dropped as well, so that nothing moves.
            ActionError: not [T, 7] with T >= 1, or the stamp is not a number; the current chunk stays.
        """
        chunk = np.asarray(actions, dtype=np.float32)
        if chunk.ndim != 2 or chunk.shape[0] < 1 or chunk.shape[1] != ACTION_DIM:
            raise ActionError(f"chunk: expected shape [T, {ACTION_DIM}] with T >= 1, got {list(chunk.shape)}")
        if not math.isfinite(stamp):
            raise ActionError(f"chunk: expected a stamp in seconds, got {stamp}")
        if not np.all(np.isfinite(chunk)):
            bad = np.argwhere(~np.isfinite(chunk))[0]
            self._actions = None
            raise NonFiniteError(
                f"chunk: expected finite actions, got {chunk[tuple(bad)]} at step {bad[0]}, degree of freedom {bad[1]};"
                " nothing of it is executed"
            )
        if self._actions is not None:
            if self._stamp - JUMP_BACK_S <= stamp < self._stamp:
                return False
            if stamp == self._stamp and self._verified and not verified:
                return False
        self._actions = chunk.copy()
        self._stamp = stamp
        self._verified = verified
        self._executable = min(self.execute_steps, chunk.shape[0])
        return True

    def next_action(self, stamp: float) -> Command | None:
        """Return the command for the tick at `stamp` (s), or None when no step of the chunk is due then."""
        if self._actions is None:
            return None
        # The half-step tolerance of rounding absorbs timer jitter; late ticks move on to the step that is due.
        step = round((stamp - self._stamp) / self.period)
        if not 0 <= step < self._executable:
            return None
        wanted = self._actions[step]
        values = wanted.copy()
        values[:GRIPPER] = np.clip(wanted[:GRIPPER], -self.limits, self.limits)
        values[GRIPPER] = np.clip(wanted[GRIPPER], -1.0, 1.0)
        self._gripper = values[GRIPPER]
        self._holds = 0
        return Command(
            values=values,
            remaining=self._executable - 1 - step,
            verified=self._verified,
            clipped=bool(np.any(values[:GRIPPER] != wanted[:GRIPPER])),
        )

    def hold(self) -> Command | None:
        """Return the command that keeps the robot where it is: zero motion, the last gripper command.

        None before the first command: nothing moves yet, and any gripper command would be invented.
        """
        self._holds += 1
        if self._gripper is None:
            return None
        values = np.zeros(ACTION_DIM, dtype=np.float32)
        values[GRIPPER] = self._gripper
        return Command(values=values, remaining=0, verified=True, hold=True)
