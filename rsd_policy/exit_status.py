"""Exit statuses of `rsd` and of the node that conducts an evaluation."""

from __future__ import annotations

from rsd_policy.errors import (
    BagError,
    CheckpointError,
    EpisodeError,
    InferenceError,
    RSDError,
    SetupError,
    SimulationError,
)

DONE = 0
FAILED = 1
"""Tests or benchmarks ran and did not pass."""
WRONG_ARGUMENTS = 2
NOT_SET_UP = 3
"""The machine or a checkpoint is not ready; what to do is printed."""
NOT_RUN = 4
"""Episodes could not be run."""
OUTSIDE_TOLERANCE = 5
"""Two answers were compared, and differ by more than their tolerance."""
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def exit_status(error: RSDError) -> int:
    """The status for an error that ends a command: what is neither set-up nor of an episode was a wrong request."""
    if isinstance(error, (SetupError, CheckpointError)):
        return NOT_SET_UP
    if isinstance(error, (BagError, EpisodeError, InferenceError, SimulationError)):
        return NOT_RUN
    return WRONG_ARGUMENTS
