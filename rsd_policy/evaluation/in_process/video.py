"""Videos of recorded episodes, made by replaying their actions: the same for every loop, and a check of determinism."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import EpisodeError
from rsd_policy.evaluation.protocol import EpisodeSpec
from rsd_policy.evaluation.results import EpisodeResult
from sim_bridge.libero_env import LiberoEnv

FRAME_STRIDE = 2
"""Every second control step becomes a frame: 10 frames/s of 20 Hz control, at half the rendering."""


def video_path(directory: Path, spec: EpisodeSpec) -> Path:
    return directory / "videos" / f"task{spec.task:02d}-trial{spec.trial:02d}.mp4"


def record_video(
    env: LiberoEnv, result: EpisodeResult, path: Path, on_step: Callable[[int], None] = lambda step: None
) -> None:
    """Replay the actions of `result` in `env` and write agentview and wrist side by side as H.264, in real time.

    The file appears under its name when it is complete.

    Raises:
        EpisodeError: the replay ended otherwise than the record says: the simulation was not deterministic.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.mp4")
    try:
        _encode(_replay(env, result, on_step), partial, fps=1 / (env.control_dt * FRAME_STRIDE))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _replay(env: LiberoEnv, result: EpisodeResult, on_step: Callable[[int], None]) -> Iterator[NDArray[np.uint8]]:
    env.reset(result.spec.trial, seed=result.spec.seed)
    yield _frame(env)
    done = False
    for step, action in enumerate(result.actions, start=1):
        if done:
            raise EpisodeError(f"replay of {result.spec} succeeded at step {step - 1}, recorded: step {result.steps}")
        render = step % FRAME_STRIDE == 0 or step == result.steps
        done = env.step(action, render=render)
        if render:
            yield _frame(env)
        on_step(step)
    if done != result.success:
        raise EpisodeError(f"replay of {result.spec} ended with success={done}, recorded: {result.outcome}")


def _frame(env: LiberoEnv) -> NDArray[np.uint8]:
    images = env.observe().images
    return np.hstack([images["agentview"], images["wrist"]])


def _encode(frames: Iterator[NDArray[np.uint8]], path: Path, fps: float) -> None:
    first = next(frames)
    height, width = first.shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_in="rgb24",
        pix_fmt_out="yuv420p",  # the only chroma format that every browser plays
        macro_block_size=2,
        output_params=["-crf", "20", "-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )
    writer.send(None)
    try:
        writer.send(np.ascontiguousarray(first))
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
