"""How far drafts are off, from recorded `speculative` runs: acceptance against the tolerance, and what rejects a draft.

The tolerance decides what the gate may skip. Every comparison of a draft with the main head is in the results, so the
acceptance at any tolerance can be read off without running anything again. A section of docs/results.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsd_policy.evaluation.statistics import mean_interval
from rsd_policy.libero import MM_PER_UNIT
from rsd_policy.observation import GRIPPER
from rsd_policy.reports.markdown import table
from rsd_policy.reports.runs import Run

TOLERANCES = (2.5, 5.0, 7.5, 10.0, 15.0, 20.0)
"""mm a step; the rotation's grows with it, 0.05 rad at 5 mm."""

KINDS = ("translation", "rotation", "gripper", "several of these", "tokens only")


def section(groups: Sequence[Sequence[Run]], plots: Path) -> str | None:
    """The section, and its plot in `plots`; None when no run has compared drafts without skipping any."""
    runs = [run for group in groups for run in group if run.config.mode == "speculative" and deviations(run)]
    if not runs:
        return None
    shares = [[within(run, tolerance) for tolerance in TOLERANCES] for run in runs]
    header = ["suite", "chunks", *(f"{tolerance:g} mm" for tolerance in TOLERANCES)]
    acceptance = [
        [_name(run), str(sum(map(len, deviations(run)))), *(_percent(*share) for share in row)]
        for run, row in zip(runs, shares, strict=True)
    ]
    rejected = [[_name(run), *_reasons(run)] for run in runs]
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for run, row in zip(runs, shares, strict=True):
        values = 100 * np.array(row)
        axes.errorbar(
            TOLERANCES, values[:, 0], np.abs(values[:, 1:].T - values[:, 0]), fmt="o-", capsize=3, label=_name(run)
        )
    axes.axvline(5.0, color="#98a2b3", lw=1, ls="--")
    axes.set_xlabel("tolerance, mm per step and axis")
    axes.set_ylabel("drafts within it, %")
    axes.set_ylim(0, 101)
    axes.grid(color="#e8ebf0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    name = "draft-deviations.png"
    figure.savefig(plots / name, dpi=110, metadata={"Software": None})
    return "\n\n".join(
        [
            "## How far drafts are off",
            "Share of the chunks of `speculative` whose draft differs from the main head's in no executed step by more "
            "than a tolerance, with the same gripper commands; rotations in proportion, 0.05 rad at 5 mm. In brackets "
            "95 % intervals, from a bootstrap over episodes. Checkpoints come with 5 mm.",
            table(header, acceptance),
            f"![drafts within a tolerance]({plots.name}/{name})",
            "What was beyond 5 mm or 0.05 rad, or another gripper command, in the rejected drafts:",
            table(["suite", "rejected", *KINDS], rejected),
        ]
    )


def deviations(run: Run) -> list[NDArray[np.float64]]:
    """For each episode with comparisons [chunks, 7]: largest |draft - main head| over the executed steps."""
    found = [[c.max_deviation for c in e.chunks if c.accepted is not None and c.max_deviation] for e in run.episodes]
    return [np.array(chunks) for chunks in found if chunks]


def within(run: Run, millimetres: float) -> tuple[float, float, float]:
    """Share of the run's chunks within the tolerance, with its 95 % interval."""
    return mean_interval([~_beyond(chunks, millimetres).any(axis=1) for chunks in deviations(run)])


def _beyond(chunks: NDArray[np.float64], millimetres: float) -> NDArray[np.bool_]:
    """[chunks, 3]: whether translation, rotation and gripper are beyond the tolerance."""
    # what is stored was rounded to float32: a deviation of exactly the tolerance is within it
    most = millimetres / MM_PER_UNIT * (1 + 1e-6)
    arm = chunks[:, :GRIPPER] > most
    return np.stack([arm[:, :3].any(axis=1), arm[:, 3:].any(axis=1), chunks[:, GRIPPER] > 0], axis=1)


def _reasons(run: Run) -> list[str]:
    """Rejected chunks, and the share of each of `KINDS` among them."""
    kinds: Counter[str] = Counter()
    for episode in run.episodes:
        for chunk in episode.chunks:
            if chunk.accepted is False and chunk.max_deviation:
                beyond = _beyond(np.array([chunk.max_deviation]), 5.0)[0]
                several, none = beyond.sum() > 1, not beyond.any()
                kinds[KINDS[3] if several else KINDS[4] if none else KINDS[int(beyond.argmax())]] += 1
    count = kinds.total()
    return [str(count), *(f"{100 * kinds[kind] / count:.0f} %" if count else "-" for kind in KINDS)]


def _name(run: Run) -> str:
    place = "GPU" if run.summary["hardware"]["gpu"] else "CPU"
    return f"{run.config.suite}, {Path(run.config.policy).name}, {place}"


def _percent(value: float, low: float, high: float) -> str:
    interval = "" if math.isnan(low) else f" ({100 * low:.0f} - {100 * high:.0f})"
    return f"{100 * value:.0f} %{interval}"
