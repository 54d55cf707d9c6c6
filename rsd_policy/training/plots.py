"""Training curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from rsd_policy.training.trainer import Progress


def plot_losses(history: Sequence[Progress], path: Path) -> None:
    """Loss and teacher-forced accuracy per level against optimiser steps, as a PNG."""
    steps = [p.step for p in history]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    left.plot(steps, [p.loss for p in history])
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    for level in range(len(history[0].main_accuracy)):
        right.plot(steps, [p.main_accuracy[level] for p in history], label=f"main L{level}")
    for level in range(len(history[0].draft_accuracy)):
        right.plot(steps, [p.draft_accuracy[level] for p in history], "--", label=f"draft L{level}")
    right.set(xlabel="step", ylabel="teacher-forced accuracy (training batch)", ylim=(0, 1))
    right.legend(fontsize=7, ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
