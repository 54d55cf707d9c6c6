"""Typed errors. Each message says what was expected, what came, and what to do."""

from __future__ import annotations


class RSDError(Exception):
    """Base of every error that rsd_policy raises on purpose."""


class ArgumentError(RSDError):
    """An argument or a setting is outside what is allowed; the message says what is."""


class ObservationError(RSDError):
    """An observation is incomplete or malformed (missing camera, wrong shape or dtype, non-finite state)."""


class ActionError(RSDError):
    """An action is malformed (wrong shape, out of range); it was not executed."""


class NonFiniteError(ActionError):
    """A model output or an action holds NaN or infinity; it was not executed."""


class CheckpointError(RSDError):
    """A checkpoint is missing, incomplete, altered, or of another architecture."""


class SimulationError(RSDError):
    """The simulation cannot do what was asked (unknown suite, task or initial state; frame not rendered)."""


class SetupError(RSDError):
    """Something that the set-up should have provided is missing (assets, renderer, ROS, messages)."""


class EpisodeError(RSDError):
    """An episode could not be run to its end; it counts neither as a success nor as a failure."""


class InferenceError(RSDError):
    """The policy could not compute a chunk (out of memory, device failure)."""


class BagError(RSDError):
    """A bag, or a message in it, cannot be read."""
