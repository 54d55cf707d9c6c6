"""Training curves as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from rsd_policy.training.mini.log import TrainingLog


def plot_training(log: TrainingLog, path: Path) -> None:
    """Loss, accuracy on training batches and on held-out frames, against optimiser steps, as a PNG."""
    running = [log.progress[step] for step in sorted(log.progress)]
    held_out = [log.validations[step] for step in sorted(log.validations)]
    figure, (loss, tokens, chunks) = pyplot.subplots(1, 3, figsize=(15, 4))
    loss.plot([p.step for p in running], [p.loss for p in running])
    loss.set(xlabel="step", ylabel="training loss", yscale="log")
    for row, (name, style) in enumerate((("main", "-"), ("draft", "--"))):
        for level in range(3):
            colour = f"C{level}"
            values = [(p.main_accuracy, p.draft_accuracy)[row][level] for p in running]
            tokens.plot([p.step for p in running], values, style, color=colour, alpha=0.3)
            key = ("head_teacher_forced_per_level", "draft_teacher_forced_per_level")[row]
            values = [v.figures[key][level] for v in held_out]
            tokens.plot([v.step for v in held_out], values, style, color=colour, label=f"{name} L{level}")
    tokens.set(xlabel="step", ylabel="teacher-forced accuracy (pale: training batch)", ylim=(0.5, 1))
    tokens.legend(fontsize=7, ncol=2)
    steps = [v.step for v in held_out]
    chunks.plot(steps, [v.figures["draft_chunks_within_tolerance"] for v in held_out], label="chunks within tolerance")
    for level in range(3):
        values = [v.figures["draft_equals_head_per_level"][level] for v in held_out]
        chunks.plot(steps, values, label=f"tokens of L{level} equal")
    chunks.set(xlabel="step", ylabel="draft against main head, held-out", ylim=(0, 1))
    chunks.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
