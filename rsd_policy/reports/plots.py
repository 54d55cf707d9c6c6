"""Plots of a run as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rsd_policy.evaluation.results import ChunkRecord

BLUE, ORANGE, GREY = "#2f6fdb", "#d9822b", "#98a2b3"

STAGES = ("preprocess", "vision", "layers_early", "draft", "layers_late", "head", "decode")
"""Order in which the engine runs its stages; others follow by name."""


def success_per_task(summary: dict[str, Any]) -> str:
    """Success rate of each task and of all, with Wilson 95 % intervals."""
    rows = [(f"task {task}", row) for task, row in summary["per_task"].items()] + [("all", summary)]
    figure, axes = _figure(0.9 + 0.27 * len(rows))
    for y, (_, row) in enumerate(rows):
        low, high = row["success_ci95"]
        if row["episodes"]:
            colour = BLUE if y < len(rows) - 1 else ORANGE
            axes.plot([100 * low, 100 * high], [y, y], color=colour, lw=2, solid_capstyle="butt")
            axes.plot(100 * row["success_rate"], y, "o", color=colour, ms=6)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("success rate, % (bar: 95 % interval)")
    axes.grid(axis="x", color="#e8ebf0")
    return _svg(figure)


def latency_histogram(chunks: Sequence[ChunkRecord]) -> str:
    """Distribution of the time to the final chunk, and to the first usable one where that differs."""
    figure, axes = _figure(2.7)
    final = np.array([chunk.inference_ms for chunk in chunks])
    first = np.array([chunk.first_action_ms for chunk in chunks])
    # A few outliers (the first inference warms up) would flatten everything else: the last bin collects them.
    top = max(float(np.percentile(final, 99)) * 1.15, 1e-3)
    bins = np.linspace(0, top, 61).tolist()
    axes.hist(np.minimum(final, top), bins=bins, color=BLUE, alpha=0.85, label="final chunk")
    if not np.allclose(first, final):
        axes.hist(np.minimum(first, top), bins=bins, color=ORANGE, alpha=0.75, label="first action")
    axes.axvline(float(np.median(final)), color="#1c2430", lw=1, ls="--", label=f"p50 {np.median(final):.1f} ms")
    beyond = int(np.sum(final > top))
    axes.set_xlabel("ms" + (f" (last bin: {beyond} of {len(final)} beyond)" if beyond else ""))
    axes.set_ylabel("inferences")
    axes.legend(frameon=False)
    return _svg(figure)


def stage_bars(stage_ms: dict[str, float]) -> str:
    """Mean time per chunk of each stage."""
    names = [name for name in STAGES if name in stage_ms] + sorted(set(stage_ms) - set(STAGES))
    figure, axes = _figure(0.9 + 0.27 * len(names))
    values = [stage_ms[name] for name in names]
    bars = axes.barh(range(len(names)), values, color=BLUE, height=0.62)
    axes.bar_label(bars, [f" {value:.2f}" for value in values], fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("mean ms per inference")
    return _svg(figure)


def draft_over_episode(chunks: Sequence[ChunkRecord]) -> str:
    """Acceptance and skip rate over the course of an episode: where in a task the draft is good enough."""
    figure, axes = _figure(2.5)
    width = 16
    last = max(chunk.step for chunk in chunks) // width
    for name, colour, values in (
        ("accepted, of compared", BLUE, [(c.step // width, c.accepted) for c in chunks if c.accepted is not None]),
        ("skipped, of all", ORANGE, [(c.step // width, c.skipped) for c in chunks]),
    ):
        rates = []
        for index in range(last + 1):
            here = [value for where, value in values if where == index]
            rates.append(100 * sum(here) / len(here) if here else np.nan)
        if np.nansum(rates) or name.startswith("accepted"):
            axes.plot((np.arange(last + 1) + 0.5) * width, rates, "o-", color=colour, ms=4, label=name)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("control step of the episode")
    axes.set_ylabel("% of chunks")
    axes.grid(axis="y", color="#e8ebf0")
    axes.legend(frameon=False)
    return _svg(figure)


def token_agreement(levels: Sequence[float | None]) -> str:
    """Equal tokens of draft and main head, per residual level."""
    figure, axes = _figure(0.9 + 0.27 * len(levels))
    values = [100 * (level or 0.0) for level in levels]
    bars = axes.barh(range(len(levels)), values, color=BLUE, height=0.62)
    axes.bar_label(bars, [f" {value:.1f}" for value in values], fontsize=9)
    axes.set_yticks(range(len(levels)), [f"L{level}" for level in range(len(levels))])
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xlabel("% of tokens equal in draft and main head")
    return _svg(figure)


def paired_success(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Differences of success rate (name, difference, low, high), in percentage points."""
    figure, axes = _figure(0.9 + 0.27 * len(rows))
    for y, (_, value, low, high) in enumerate(rows):
        colour = BLUE if y < len(rows) - 1 else ORANGE
        axes.plot([100 * low, 100 * high], [y, y], color=colour, lw=2, solid_capstyle="butt")
        axes.plot(100 * value, y, "o", color=colour, ms=6)
    axes.axvline(0, color="#1c2430", lw=1)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("success of B minus A, percentage points (bar: 95 % interval)")
    axes.grid(axis="x", color="#e8ebf0")
    return _svg(figure)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    content = text.getvalue()
    return content[content.index("<svg") :]
