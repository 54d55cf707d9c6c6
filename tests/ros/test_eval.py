"""`rsd eval` over ROS as users call it: the same actions as in process, and every fault ends well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from rsd_policy.errors import ArgumentError
from rsd_policy.evaluation.in_process.drivers import EngineDriver, ExpertDriver
from rsd_policy.evaluation.in_process.episode import run_episode
from rsd_policy.evaluation.protocol import EpisodeSpec
from rsd_policy.evaluation.recorder import open_run
from rsd_policy.evaluation.results import ERROR, SUCCESS
from rsd_policy.evaluation.store import DATABASE, ResultStore
from rsd_policy.graph.bringup import eval_nodes
from rsd_policy.graph.supervisor import ros_domain, run_graph
from rsd_policy.observation import GRIPPER
from sim_bridge.libero_env import LiberoEnv

SUITE = "libero_object"  # quick for the expert


class Command:
    """A running `rsd eval`, and every process that it has ever started."""

    def __init__(self, out: Path, *arguments: str) -> None:
        self.out = out
        self.log = out.with_suffix(".log")
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "rsd_policy.cli", "eval", "--out", str(out), *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._family = {self.popen.pid: psutil.Process(self.popen.pid)}

    def children(self) -> list[psutil.Process]:
        try:
            for child in psutil.Process(self.popen.pid).children(recursive=True):
                self._family.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            return []
        return [p for p in self._family.values() if p.pid != self.popen.pid and p.is_running()]

    def node(self, module: str) -> psutil.Process:
        """The process of a node."""
        for child in self.children():
            if module in child.cmdline():
                return child
        raise AssertionError(f"no process runs {module}: {self.text()}")

    def wait_for(self, condition, what: str, timeout_s: float = 180.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.popen.poll() is None, f"ended before {what}: {self.text()}"
            assert time.monotonic() < deadline, f"expected {what} within {timeout_s} s: {self.text()}"
            self.children()
            time.sleep(0.05)

    def finish(self, timeout_s: float = 300.0) -> int:
        deadline = time.monotonic() + timeout_s
        while self.popen.poll() is None:
            assert time.monotonic() < deadline, f"expected an end within {timeout_s} s: {self.text()}"
            self.children()
            time.sleep(0.05)
        return self.popen.returncode

    def left(self) -> list[psutil.Process]:
        """Processes that outlived the command by more than the kernel needs to end them.

        One that has ended and that nobody has asked about yet, a zombie, is not alive: who should ask is init.
        """
        left = psutil.wait_procs([p for p in self._family.values() if p.is_running()], timeout=2.0)[1]
        return [p for p in left if _alive(p)]

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """After a failed test: leave nothing behind."""
        for process in self._family.values():
            if process.is_running():
                process.kill()
        self.popen.wait()


@contextmanager
def rsd_eval(out: Path, *arguments: str):
    command = Command(out, *arguments)
    try:
        yield command
    finally:
        command.end()


def results(out: Path):
    with ResultStore.open_results(out) as store:
        return store.episodes()


def running(out: Path) -> bool:
    log = out / "logs" / "sim_bridge.log"
    return log.exists() and "episode 1:" in log.read_text()


@pytest.fixture(scope="module")
def two_at_once(tmp_path_factory, untrained):
    """An untrained policy and the expert, at the same time on the same machine, each on a graph of its own."""
    directory = tmp_path_factory.mktemp("eval")
    with (
        rsd_eval(directory / "expert", "--policy", "expert", "--task-suite", SUITE, "--tasks", "3") as expert,
        rsd_eval(
            directory / "policy", "--policy", str(untrained), "--task-suite", "libero_spatial", "--tasks", "4"
        ) as policy,
    ):
        assert expert.finish() == 0, expert.text()
        assert policy.finish() == 0, policy.text()
        assert expert.left() == policy.left() == []
    return directory


def in_process(suite: str, task: int, driver, image_size: int = 256, **settings):
    with LiberoEnv(suite, task, image_size=image_size, render=driver.needs_images) as env:
        return run_episode(env, driver, EpisodeSpec(suite, task, 0), **settings)


def assert_same(over_ros, reference):
    assert (over_ros.outcome, over_ros.steps, over_ros.instruction) == (
        reference.outcome,
        reference.steps,
        reference.instruction,
    )
    different = np.flatnonzero(np.any(over_ros.actions != reference.actions, axis=1))
    assert over_ros.actions.tobytes() == reference.actions.tobytes(), f"first difference at step {different[:1]}"
    assert [c.step for c in over_ros.chunks] == [c.step for c in reference.chunks]
    for mine, theirs in zip(over_ros.chunks, reference.chunks, strict=True):
        assert (mine.verified, mine.accepted, mine.skipped, mine.levels) == (
            theirs.verified,
            theirs.accepted,
            theirs.skipped,
            theirs.levels,
        )
        assert np.allclose(mine.token_agreement, theirs.token_agreement)


def test_the_expert_over_ros_acts_as_in_process(two_at_once):
    (episode,) = results(two_at_once / "expert")
    assert episode.outcome == SUCCESS
    assert_same(episode, in_process(SUITE, 3, ExpertDriver()))


def test_a_policy_over_ros_acts_as_in_process_while_another_graph_runs(two_at_once, untrained):
    (episode,) = results(two_at_once / "policy")
    assert episode.steps == 220
    assert_same(episode, in_process("libero_spatial", 4, EngineDriver(str(untrained), "speculative", "cpu")))


def test_settings_of_the_file_hold_over_ros_as_in_process_and_are_recorded(tmp_path, untrained):
    out = tmp_path / "out"
    settings = {"execute_steps": 3, "limit": 0.4, "image_size": 64}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"/**": {"ros__parameters": settings}}))
    specs = eval_nodes(
        task_suite="libero_spatial",
        tasks="4",
        trials="0",
        policy=str(untrained),
        mode="speculative",
        clock="lockstep",
        device="cpu",
        seed=0,
        out=str(out),
        report=False,
    )
    assert run_graph(specs, config=config, logs=tmp_path / "logs") == 0
    with ResultStore.open_results(out) as store:
        recorded = store.config
        (episode,) = store.episodes()
    assert {name: getattr(recorded, name) for name in settings} == settings
    assert [chunk.step for chunk in episode.chunks] == list(range(0, 220, 3))
    assert np.abs(episode.actions[:, :GRIPPER]).max() == np.float32(0.4)  # a limit is the arm's, not the hand's
    driver = EngineDriver(str(untrained), "speculative", "cpu", execute_steps=3)
    assert_same(episode, in_process("libero_spatial", 4, driver, image_size=64, execute_steps=3, limit=0.4))
    with pytest.raises(ArgumentError, match="execute_steps: 3 / 8"):
        open_run(out, replace(recorded, execute_steps=8))


def test_mini_over_ros_solves_its_task_and_acts_as_in_process(tmp_path):
    with rsd_eval(tmp_path / "mini", "--tasks", "0") as command:
        assert command.finish() == 0, command.text()
    (episode,) = results(tmp_path / "mini")
    assert episode.outcome == SUCCESS, f"mini solves this one; not after {episode.steps} steps"
    assert_same(episode, in_process("libero_spatial", 0, EngineDriver("mini", "speculative", "cpu")))


def test_a_killed_node_ends_the_run_with_its_name_and_the_next_call_resumes(tmp_path):
    out = tmp_path / "out"
    arguments = ("--policy", "expert", "--task-suite", SUITE, "--tasks", "0,1")
    with rsd_eval(out, *arguments) as command:
        command.wait_for(lambda: (out / DATABASE).exists() and bool(results_or_none(out)), "the first episode")
        command.wait_for(lambda: "episode 2:" in (out / "logs" / "sim_bridge.log").read_text(), "the second episode")
        command.node("rsd_policy.nodes.action_executor").kill()
        assert command.finish() == 4, command.text()
        assert "action_executor ended unexpectedly (killed by SIGKILL)" in command.text()
        assert command.left() == []
    (first,) = results(out)
    with rsd_eval(out, *arguments) as command:
        assert command.finish() == 0, command.text()
        assert "resuming: 1 of 2 episodes are finished" in command.text()
    again, second = results(out)
    assert again.actions.tobytes() == first.actions.tobytes()
    assert second.spec.task == 1 and second.outcome == SUCCESS


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def results_or_none(out: Path):
    from rsd_policy.evaluation.store import StoreError

    try:
        return results(out)
    except StoreError:
        return None  # the database is there, the run in it not yet


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.5, None])
def test_ctrl_c_at_any_moment_leaves_no_process_and_no_half_result(tmp_path, seconds):
    out = tmp_path / "out"
    with rsd_eval(out, "--policy", "expert", "--task-suite", SUITE, "--tasks", "0") as command:
        if seconds is None:
            command.wait_for(lambda: running(out), "a running episode")
        else:
            deadline = time.monotonic() + seconds
            command.wait_for(lambda: time.monotonic() > deadline, "the moment")
        command.popen.send_signal(signal.SIGINT)
        command.popen.send_signal(signal.SIGINT)  # people press it twice
        status = command.finish(60)
        assert status in ((130,) if seconds is None else (130, -signal.SIGINT)), command.text()
        assert command.left() == []
    if (out / DATABASE).exists():
        assert not results_or_none(out), "an interrupted episode is no result"


def test_nodes_do_not_outlive_a_killed_command(tmp_path):
    out = tmp_path / "out"
    with rsd_eval(out, "--policy", "expert", "--task-suite", SUITE, "--tasks", "0") as command:
        command.wait_for(lambda: running(out), "a running episode")
        assert len(command.children()) >= 4
        command.popen.kill()
        command.popen.wait()
        assert command.left() == []


def test_a_silent_node_is_named_and_its_episode_is_an_error(tmp_path, capfd):
    out = tmp_path / "out"
    specs = eval_nodes(
        task_suite=SUITE,
        tasks="0",
        trials="0",
        policy="expert",
        mode="baseline",
        clock="lockstep",
        device="cpu",
        seed=0,
        out=str(out),
        report=True,
    )
    config = tmp_path / "config.yaml"
    config.write_text("eval_node:\n  ros__parameters:\n    stall_timeout: 5.0\n    start_timeout: 10.0\n")
    present = [spec for spec in specs if spec.name != "expert"]
    assert run_graph(present, config=config, logs=tmp_path / "logs") == 4
    assert "expert is silent: nothing came from it for 10 s at step 0" in capfd.readouterr().err
    (episode,) = results(out)
    assert episode.outcome == ERROR and "expert is silent" in episode.error
    assert (out / "summary.json").exists()


def test_two_runs_never_share_a_domain(monkeypatch):
    with ros_domain() as first, ros_domain() as second:
        assert first != second
        monkeypatch.setenv("ROS_DOMAIN_ID", str(first))
        with pytest.raises(Exception, match=f"ROS_DOMAIN_ID {first} is in use by another rsd"), ros_domain():
            pass
    with ros_domain() as chosen:
        assert chosen == first, "the user's own choice counts"
    assert os.environ["ROS_DOMAIN_ID"] == str(first)
