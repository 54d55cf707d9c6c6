"""The results of an evaluation in Rerun: what each episode executed, how its inferences went, and its video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.evaluation.in_process.video import video_path
from rsd_policy.evaluation.results import EpisodeResult
from rsd_policy.evaluation.store import ResultStore
from rsd_policy.robots.contract import ActionMeaning

FINAL, SKIPPED = (21, 101, 192), (230, 140, 0)
"""Colours of what was executed of a final chunk, and of a draft that the gate let through, RGB."""

TIMELINE = "episode"
"""Time since the beginning of the episode: all episodes lie over each other."""


def view_results(rerun: Any, store: ResultStore, meaning: ActionMeaning) -> int:
    """Log every recorded episode of a run; returns how many.

    Args:
        rerun: the module, with a recording begun.
        meaning: of the executed actions.
    """
    results = store.episodes()
    for result in results:
        spec = result.spec
        name = f"{spec.suite}/task{spec.task:02d}-trial{spec.trial:02d}"
        rerun.set_time(TIMELINE, duration=0.0)
        rerun.log(f"{name}/task", rerun.TextLog(result.instruction))
        _inferences(rerun, name, result, meaning)
        _gripper(rerun, name, result, meaning.period_s)
        rerun.set_time(TIMELINE, duration=result.steps * meaning.period_s)
        rerun.log(f"{name}/outcome", rerun.TextLog(result.outcome + (f": {result.error}" if result.error else "")))
        video = video_path(store.directory, spec)
        if video.exists():
            _video(rerun, f"{name}/video", video)
    return len(results)


def _inferences(rerun: Any, name: str, result: EpisodeResult, meaning: ActionMeaning) -> None:
    """Each inference at the step of its observation, with the path that its actions asked for until the next one."""
    path = executed_path(result.actions, meaning.translation_m)
    ends = [*(chunk.step for chunk in result.chunks[1:]), len(result.actions)]
    for chunk, end in zip(result.chunks, ends, strict=True):
        rerun.set_time(TIMELINE, duration=chunk.step * meaning.period_s)
        rerun.log(f"{name}/inference_ms", rerun.Scalars(chunk.inference_ms))
        rerun.log(f"{name}/skipped", rerun.Scalars(float(chunk.skipped)))
        if chunk.accepted is not None:
            rerun.log(f"{name}/accepted", rerun.Scalars(float(chunk.accepted)))
        points = path[chunk.step : end + 1]
        colour = SKIPPED if chunk.skipped else FINAL
        rerun.log(f"{name}/executed/{chunk.step:04d}", rerun.LineStrips3D([points], colors=[colour], radii=0.003))


def executed_path(actions: NDArray[np.float32], translation_m: float) -> NDArray[np.float64]:
    """Where actions [N, 7] ask the hand to go, [N + 1, 3], m, from where it began: results keep no positions."""
    moves = np.cumsum(actions[:, :3].astype(np.float64), axis=0) * translation_m
    return np.concatenate([np.zeros((1, 3)), moves])


def _gripper(rerun: Any, name: str, result: EpisodeResult, period_s: float) -> None:
    times = rerun.TimeColumn(TIMELINE, duration=np.arange(len(result.actions)) * period_s)
    rerun.send_columns(f"{name}/gripper", [times], rerun.Scalars.columns(scalars=result.actions[:, 6]))


def _video(rerun: Any, name: str, path: Path) -> None:
    asset = rerun.AssetVideo(path=path)
    rerun.log(name, asset, static=True)
    stamps = asset.read_frame_timestamps_nanos()
    times = rerun.TimeColumn(TIMELINE, duration=np.asarray(stamps) * 1e-9)
    rerun.send_columns(name, [times], rerun.VideoFrameReference.columns_nanos(stamps))
