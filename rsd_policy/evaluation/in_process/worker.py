"""Body of a worker process: loads the policy once, keeps the environment of one task, and runs jobs until told to stop.

Speaks with `workers.py` over a pipe. Receives `Job`s; sends ("ready",), ("refused", error), ("step", step,
inference_ms), ("result", EpisodeResult) and ("video", error text or None). A parent that is gone ends it: the pipe is
closed then.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from rsd_policy.errors import EpisodeError
from rsd_policy.evaluation.in_process.drivers import make_driver
from rsd_policy.evaluation.in_process.episode import run_episode
from rsd_policy.evaluation.in_process.video import record_video, video_path
from rsd_policy.evaluation.protocol import EpisodeSpec, EvalConfig
from rsd_policy.evaluation.results import ERROR, EpisodeResult
from rsd_policy.faults import understood
from sim_bridge.libero_env import LiberoEnv


@dataclass(frozen=True)
class Job:
    """An episode to run; with `replay`, a recorded episode of which a video is to be made."""

    spec: EpisodeSpec
    replay: EpisodeResult | None = None

    def __str__(self) -> str:
        return f"video of {self.spec}" if self.replay else str(self.spec)


def work(connection: Connection, config: EvalConfig, directory: Path, log: Path, video: bool) -> None:
    """Run jobs until the parent hangs up.

    Args:
        directory: where videos go.
        log: what the simulator and its libraries print goes here: it must not tear the progress display.
        video: jobs may ask for videos, so environments need a renderer even when the driver reads no image.
    """
    output = log.open("w")
    os.dup2(output.fileno(), sys.stdout.fileno())
    os.dup2(output.fileno(), sys.stderr.fileno())
    faulthandler.enable()
    try:
        try:
            driver = make_driver(config)
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            connection.send(("refused", understood(error) or EpisodeError(f"{type(error).__name__}: {error}")))
            return
        connection.send(("ready",))
        env: LiberoEnv | None = None
        while True:
            job: Job = connection.recv()
            try:
                if env is None or env.task != job.spec.task:
                    if env is not None:
                        env.close()
                        env = None
                    rendered = driver.needs_images or video
                    env = LiberoEnv(job.spec.suite, job.spec.task, image_size=config.image_size, render=rendered)
                if job.replay is None:
                    result = run_episode(
                        env,
                        driver,
                        job.spec,
                        lambda step, ms: connection.send(("step", step, ms)),
                        execute_steps=config.execute_steps,
                        limit=config.limit,
                    )
                    connection.send(("result", result))
                else:
                    path = video_path(directory, job.spec)
                    record_video(env, job.replay, path, lambda step: connection.send(("step", step, None)))
                    connection.send(("video", None))
            except ConnectionError:
                raise
            except Exception as error:
                _report(connection, job, error)
                if env is not None:  # nobody knows what state it is in
                    env.close()
                    env = None
    except (EOFError, ConnectionError):
        return  # the parent closed the pipe or is gone


def _report(connection: Connection, job: Job, error: Exception) -> None:
    """Send what went wrong; the traceback goes to the log."""
    traceback.print_exc()
    sys.stderr.flush()
    text = f"{type(error).__name__}: {error}"
    if job.replay is None:
        connection.send(("result", EpisodeResult(job.spec, ERROR, steps=0, error=text)))
    else:
        connection.send(("video", f"{job}: {text}"))
