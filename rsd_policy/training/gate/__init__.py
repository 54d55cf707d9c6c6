"""Calibration of the gate: rollouts, the predictor of the deviation, the curve of thresholds."""
