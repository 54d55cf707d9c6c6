"""LIBERO's constants, each once: suites, step limits, units of an action, the control rate."""

from __future__ import annotations

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")

TASKS_PER_SUITE = {suite: 90 if suite == "libero_90" else 10 for suite in SUITES}

INIT_STATES_PER_TASK = 50
"""Canonical initial states that LIBERO ships for each task."""

MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Control steps of an episode in published evaluations, the wait steps not counted."""

WAIT_STEPS = 10
"""Control steps with a still, open hand before an episode begins, as in published evaluations."""

CONTROL_FREQUENCY = 20
"""Control steps per second."""

MM_PER_UNIT = 50.0
"""Translation per control step of an action of 1: robosuite's OSC_POSE as LIBERO sets it up."""

RAD_PER_UNIT = 0.5
"""Rotation per control step of an action of 1, same source."""

TOLERANCE = (0.1,) * 6
"""Deviation per control step up to which two motions count as the same, in action units: 5 mm and 0.05 rad."""
