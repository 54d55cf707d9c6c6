"""LIBERO's constants, each once: suites, step limits, units of an action, the control rate."""

from __future__ import annotations

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
"""LIBERO's own suites, which may be trained on (their canonical initial states may not)."""

PERTURBATIONS = {
    "swap": "things stand elsewhere",
    "object": "things look otherwise",
    "task": "another goal in the same scene",
    "lan": "another wording",
}
"""LIBERO-PRO's perturbations, and what each changes."""

BASE_SUITE = {f"{base}_{kind}": base for base in SUITES if base != "libero_90" for kind in PERTURBATIONS}
"""LIBERO-PRO's perturbed suites, each with the one it perturbs. Only ever evaluated, never trained or calibrated on."""

EVALUATED_SUITES = (*SUITES, *BASE_SUITE)

SUITES_IN_WORDS = f"{', '.join(SUITES)}, or one of the first four with _{', _'.join(PERTURBATIONS)} (LIBERO-PRO)"
"""`EVALUATED_SUITES`, for a message."""

TASKS_PER_SUITE = {suite: 90 if suite == "libero_90" else 10 for suite in EVALUATED_SUITES}

INIT_STATES_PER_TASK = 50
"""Canonical initial states that LIBERO, and LIBERO-PRO, ship for each task."""

_MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
MAX_STEPS = {suite: _MAX_STEPS[BASE_SUITE.get(suite, suite)] for suite in EVALUATED_SUITES}
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
