"""`rsd eval` from the outside: arguments, one real closed-loop episode, and ends that must be clean."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from rsd_policy import cli
from rsd_policy.errors import EpisodeError
from rsd_policy.evaluation.in_process.pool import run_in_workers
from rsd_policy.evaluation.in_process.worker import Job
from rsd_policy.evaluation.protocol import EpisodeSpec, EvalConfig
from rsd_policy.evaluation.recorder import Recorder
from rsd_policy.evaluation.store import DATABASE, ResultStore

RUN = "import sys; from rsd_policy.cli import main; sys.exit(main(['eval', *sys.argv[1:]]))"
EXPERT = ["--policy", "expert", "--task-suite", "libero_object", "--tasks", "0", "--no-ros"]


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--task-suite", "libero_spatula"], "libero_spatial, libero_object"),
        (["--tasks", "0-10"], "tasks 0-9"),
        (["--tasks", "two"], "'0-9,12'"),
        (["--num-trials", "51"], "1 to 50"),
        (["--trials", "40-50"], "0-49; got 50"),
        (["--mode", "turbo"], "baseline, speculative, gated"),
        (["--clock", "realtime", "--no-ros"], "--no-ros"),
        (["--workers", "2", "--policy", "expert"], "--no-ros"),
        (["--workers", "0", "--policy", "expert"], "at least 1"),
    ],
)
def test_wrong_arguments_exit_2_and_say_what_is_allowed(
    arguments: list[str], allowed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert allowed in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--policy", str(tmp_path), "--no-ros", "--out", str(tmp_path / "out")]) == 3
    assert "manifest.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_refused_before_anything_heavy() -> None:
    code = f"import sys\nsys.argv[1:] = ['--tasks', '77']\ntry:\n    {RUN}\nfinally:\n    print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert not {"torch", "mujoco", "robosuite", "matplotlib", "rclpy"} & set(done.stdout.split())


def test_one_real_episode_of_the_expert(tmp_path: Path) -> None:
    """Closed loop on real LIBERO: success, summary, report, video; a second call runs nothing again."""
    out = tmp_path / "out"
    assert cli.main(["eval", *EXPERT, "--video", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["episodes"], summary["successes"], summary["errors"]) == (1, 1, [])
    assert (summary["policy"], summary["mode"], summary["transport"]) == ("expert", None, "in-process")
    assert summary["per_task"]["0"]["instruction"] == "pick up the alphabet soup and place it in the basket"
    assert summary["latency_ms"]["p50"] > 0
    with ResultStore.open_results(out) as store:
        (episode,) = store.episodes()
    assert 20 < episode.steps <= 280
    assert len(episode.chunks) == episode.steps
    assert np.abs(episode.actions).max() <= 1
    assert set(np.unique(np.sign(episode.actions[:, 6]))) == {-1.0, 1.0}  # it opened and closed the hand

    video = cv2.VideoCapture(str(out / "videos" / "task00-trial00.mp4"))
    fourcc = int(video.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little")
    assert fourcc.lower() in (b"h264", b"avc1")
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 1 + (episode.steps + 1) // 2
    assert "videos/task00-trial00.mp4" in (out / "report.html").read_text()

    database = (out / DATABASE).stat()
    assert cli.main(["eval", *EXPERT, "--out", str(out)]) == 0
    assert _finished(out).keys() == {(0, 0)}
    assert database.st_ino == (out / DATABASE).stat().st_ino
    assert cli.main(["eval", *EXPERT, "--seed", "1", "--out", str(out)]) == 2


def test_killed_worker_then_interrupt_then_resume(tmp_path: Path) -> None:
    """A killed worker ends with 4 and the episode's name, Ctrl-C with 130 and no process; then the rest is run."""
    out = tmp_path / "out"
    first = _Command(out)
    first.read_until("[1/2] task 0 trial 0: success")
    os.kill(first.worker(), signal.SIGKILL)
    output = first.end(expect=4)
    assert "libero_object task 0 trial 1" in output
    assert "SIGKILL" in output
    assert {key: outcome for key, (outcome, _) in _finished(out).items()} == {(0, 0): "success", (0, 1): "error"}
    before = _finished(out)[0, 0]

    second = _Command(out)
    second.read_until("resuming: 1 of 2")
    worker = second.worker()
    os.killpg(second.process.pid, signal.SIGINT)  # as a terminal does: the whole group
    assert "interrupted" in second.end(expect=130)
    assert not Path(f"/proc/{worker}").exists()
    assert not list(out.glob("*.partial*"))
    assert json.loads((out / "summary.json").read_text())["complete"] is False

    third = _Command(out)
    third.end(expect=0)
    assert _finished(out)[0, 0] == before
    assert _finished(out)[0, 1][0] == "success"
    assert not list(out.glob("worker-*.log"))


def test_workers_end_when_the_command_is_killed(tmp_path: Path) -> None:
    command = _Command(tmp_path / "out")
    worker = command.worker()
    command.process.kill()
    command.process.communicate()
    for _ in range(600):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.1)
    else:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker outlived the command")
    with ResultStore.open_results(tmp_path / "out") as store:  # unlocked and readable
        assert len(store.pending()) == 2


def test_a_wedged_worker_is_ended_and_its_episode_named(tmp_path: Path) -> None:
    config = EvalConfig(suite="libero_object", tasks=(0,), policy="expert", ros=False)
    stopped: list[int] = []

    class Stopping(Recorder):
        def stepped(self, spec: EpisodeSpec, step: int, inference_ms: float | None = None) -> None:
            """Freeze the worker in the middle of its episode, as a hung driver would."""
            if not stopped:
                (process,) = multiprocessing.active_children()
                assert process.pid is not None
                os.kill(process.pid, signal.SIGSTOP)
                stopped.append(process.pid)

    with (
        Stopping(tmp_path / "out", config) as recorder,
        pytest.raises(EpisodeError, match=r"libero_object task 0 trial 0: worker .* reported nothing for 30 s"),
    ):
        jobs = [Job(spec) for spec in recorder.pending()]
        run_in_workers(config, recorder, jobs, workers=1, video=False, stall_timeout_s=30.0)
    assert stopped
    assert not Path(f"/proc/{stopped[0]}").exists()
    assert {outcome for outcome, _ in _finished(tmp_path / "out").values()} == {"error"}


class _Command:
    """`rsd eval` of two episodes of the expert, in a process group of its own."""

    def __init__(self, out: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, *EXPERT, "--num-trials", "2", "--out", str(out)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.output = ""

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"'{text}' never came; got: {self.output}")

    def worker(self) -> int:
        """Pid of the worker process, once it is there."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for _ in range(300):
            for pid in children.read_text().split():
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
            time.sleep(0.1)
        pytest.fail("no worker process came up")

    def end(self, expect: int) -> str:
        self.output += self.process.communicate(timeout=240)[0]
        assert self.process.returncode == expect, self.output
        return self.output


def _finished(out: Path) -> dict[tuple[int, int], tuple[str, str]]:
    """(task, trial) -> (outcome, when it was recorded)."""
    with sqlite3.connect(out / DATABASE) as database:
        rows = database.execute("SELECT task, trial, outcome, finished FROM episodes").fetchall()
    return {(task, trial): (outcome, when) for task, trial, outcome, when in rows}
