"""The gate's curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from rsd_policy.engine.calibration import Curve


def plot_calibration(curve: Curve, alphas: Sequence[float], path: Path) -> None:
    """Skip rate, deviation rate and its bound against the threshold, as a PNG; a dot marks each alpha's threshold."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), sharey=False)
    left.plot(curve.threshold, curve.skip_rate, color="tab:blue", label="skipped of all chunks")
    left.plot(curve.threshold, curve.deviation_rate, color="tab:red", label="deviating of skipped chunks")
    left.plot(curve.threshold, curve.bound, "--", color="tab:red", label=f"its {curve.confidence:.0%} upper bound")
    left.set(xlabel="threshold on the predicted probability", ylabel="rate", ylim=(0, 1))
    left.legend(fontsize=8)
    right.plot(curve.skip_rate, curve.deviation_rate, color="tab:red", label="deviating of skipped chunks")
    right.plot(curve.skip_rate, curve.bound, "--", color="tab:red", label=f"its {curve.confidence:.0%} upper bound")
    for alpha in alphas:
        right.axhline(alpha, color="grey", linewidth=0.6)
        index = curve.choose(alpha)
        if index is not None:
            right.plot(curve.skip_rate[index], curve.bound[index], "o", color="black", markersize=4)
            right.annotate(f"alpha {alpha:g}", (curve.skip_rate[index], curve.bound[index]), fontsize=8)
    right.set(xlabel="skipped of all chunks", ylabel="rate", ylim=(0, max(1.3 * max(alphas), 0.05)))
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
