"""sim_bridge: LIBERO as a robot with topics, in lockstep or in real time.

Lockstep: the simulation waits for the Action of (episode, step), executes it, publishes the new state, the images if
that command was the last of its chunk, and an EpisodeStatus that asks for the next Action. Real time: the simulation
steps at 20 Hz with the latest command, whatever the policy does.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rsd_msgs.msg import Action, EpisodeStatus
from rsd_msgs.srv import ResetEpisode

from rsd_policy.errors import ActionError, RSDError, SetupError, SimulationError
from rsd_policy.nodes.diagnostics import ERROR, OK, PERIOD_S, WARN, Diagnostics
from rsd_policy.nodes.messages import to_stamp
from rsd_policy.nodes.parameters import declare_bool, declare_choice, declare_setting
from rsd_policy.nodes.runtime import COMMANDS, run_node
from rsd_policy.observation import ACTION_DIM, GRIPPER
from rsd_policy.settings import CLOCKS, IMAGE_SIZE
from sim_bridge.crew import CurrentEnv
from sim_bridge.libero_assets import load_init_states, task_spec
from sim_bridge.libero_env import LiberoEnv
from sim_bridge.nodes.robot_topics import RobotTopics

RENDER = ("on_demand", "always", "never")

ASK_AGAIN_S = 1.0
"""Lockstep: the state is published again when no command came for so long, in case a message was lost or a node is new.
Nodes that have answered repeat their answer; nodes that are computing it ignore the repetition."""

RESET_TIMEOUT_S = 180.0
"""A reset takes 2-8 s, with a new environment up to 20 s; several simulations on few cores take a multiple of that."""

DISCOVERY_S = 2.0
"""Another bridge of the domain is found within this time (0-0.25 s were measured on an idle machine)."""

COMMAND_PERIODS = 2
"""Real time: a command is executed for at most so many periods (0.1 s, as in MoveIt Servo), then the arm holds."""

SLOW = 0.95
"""Real time: below this factor of simulated to wall time, latency figures are flattered, and diagnostics warn."""


@dataclass
class _Reset:
    request: ResetEpisode.Request
    response: Future[ResetEpisode.Response] = field(default_factory=Future)
    abandoned: bool = False


class BridgeNode(Node):
    """Parameters: clock, render, image_size, publish_privileged_state."""

    def __init__(self) -> None:
        super().__init__("sim_bridge")
        self._realtime = declare_choice(self, "clock", CLOCKS, "When the simulation steps") == "realtime"
        self._render = declare_choice(self, "render", RENDER, "Which control steps are rendered")
        self._image_size: int = declare_setting(self, IMAGE_SIZE)
        privileged = declare_bool(
            self, "publish_privileged_state", False, "Publish sim_state, which no robot has (for the expert)"
        )
        self._topics = RobotTopics(self, privileged=privileged)
        self._refuse_second_clock()
        self._privileged = privileged
        self._status_publisher = self.create_publisher(EpisodeStatus, "episode", COMMANDS)
        self._diagnostics = Diagnostics(self, "libero")
        self._diagnostics.set("episode", OK, "no episode yet")
        self._current = CurrentEnv(self._create)
        self._env: LiberoEnv | None = None
        self._status = EpisodeStatus()
        self._ticks = 0
        self._period_ns = 50_000_000
        self._command: Action | None = None
        self._command_tick = 0
        self._gripper = -1.0
        self._deadline = 0.0
        self._last_tick = 0.0
        self._speed = 1.0
        self._jobs: queue.SimpleQueue[_Reset | Action | None] = queue.SimpleQueue()
        self.fatal_error: BaseException | None = None
        # Shutting down from the executor's thread lets the answer to a reset that broke the simulation go out first.
        self._dead = self.create_guard_condition(self.context.try_shutdown)
        # One thread owns the environment from its creation on: an OpenGL context belongs to one thread, and a step that
        # takes 0.2 s must not hold up the node.
        self._thread = threading.Thread(target=self._run, name="simulation", daemon=True)
        self._thread.start()
        self.create_subscription(Action, "action", self._jobs.put, COMMANDS)
        self.create_service(ResetEpisode, "~/reset", self._on_reset)

    def _refuse_second_clock(self) -> None:
        """Two sources of /clock make the time of every node of the domain jump to and fro.

        Our own publisher is there already: of two bridges that start together, one at least sees the other.

        Raises:
            SetupError: names who publishes it already.
        """
        others: list[Any] = []
        deadline = time.monotonic() + DISCOVERY_S
        while not (others and _known(others)) and time.monotonic() < deadline:
            time.sleep(0.05)
            others = self._other_clocks()
        if others:
            names = ", ".join(f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in others)
            raise SetupError(
                f"/clock: expected to be its only source in this ROS domain, {names} publishes it already; start "
                "this simulation in a domain of its own (ROS_DOMAIN_ID), or end the other (one that was killed is seen "
                "for a while longer: try again)"
            )

    def _other_clocks(self) -> list[Any]:
        """Publishers of /clock but for our own; another bridge may have the same name."""
        clocks = self.get_publishers_info_by_topic("/clock")
        me = (self.get_name(), self.get_namespace())
        own = next((info for info in clocks if (info.node_name, info.node_namespace) == me), None)
        return [info for info in clocks if info is not own]

    def close(self) -> None:
        """End the simulation thread, which closes the environment."""
        self._jobs.put(None)
        self._thread.join(timeout=15.0)

    # -- executor thread

    def _on_reset(self, request: ResetEpisode.Request, response: ResetEpisode.Response) -> ResetEpisode.Response:
        # Waiting here blocks the executor, and nothing else is due meanwhile: no command can come before an episode
        # runs. (A coroutine would make rclpy's executor spin at full load until it is done.)
        job = _Reset(request)
        self._jobs.put(job)
        deadline = time.monotonic() + RESET_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                return job.response.result(timeout=PERIOD_S)
            except FutureTimeout:
                self._diagnostics.publish()  # the executor, which does it otherwise, waits here
        job.abandoned = True
        response.message = f"expected a reset within {RESET_TIMEOUT_S:.0f} s; the machine is overloaded"
        return response

    # -- simulation thread

    def _run(self) -> None:
        try:
            while self._next_job():
                pass
        except BaseException as error:  # handed to the main thread, which ends the node with it
            if self.context.ok():
                self.fatal_error = error
                self._dead.trigger()
        finally:
            self._current.close()

    def _next_job(self) -> bool:
        """Do one thing; False when the node closes."""
        running = self._status.state == EpisodeStatus.RUNNING
        timeout = None
        if running:
            timeout = max(0.0, self._deadline - time.monotonic()) if self._realtime else ASK_AGAIN_S
        try:
            job = self._jobs.get(timeout=timeout)
        except queue.Empty:
            if self._realtime:
                self._tick()
            else:
                self._topics.publish_again()
                self._status_publisher.publish(self._status)
            return True
        if isinstance(job, _Reset):
            try:
                self._reset(job)
            except BaseException as error:  # ends the node; whoever waits for the answer learns why
                if not job.response.done():
                    job.response.set_result(ResetEpisode.Response(message=f"{type(error).__name__}: {error}"))
                raise
        elif isinstance(job, Action):
            self._take(job)
        return job is not None

    def _reset(self, job: _Reset) -> None:
        response = ResetEpisode.Response()
        try:
            self._check(job.request)
        except RSDError as error:
            self.get_logger().warning(f"reset refused: {error}")
            response.message = str(error)
            job.response.set_result(response)
            return
        if self._status.state == EpisodeStatus.RUNNING:
            self._end(EpisodeStatus.ABORTED, "a new episode was asked for")
        try:
            self._begin(job.request)
        except RSDError as error:
            self.get_logger().error(f"reset failed: {error}")
            self._diagnostics.set("episode", ERROR, str(error))
            response.message = str(error)
            job.response.set_result(response)
            return
        if job.abandoned:
            self._end(EpisodeStatus.ABORTED, "the reset took too long")
            return
        response.accepted = True
        response.episode = self._status.episode
        response.instruction = self._status.instruction
        response.max_steps = self._status.max_steps
        job.response.set_result(response)
        self._publish(rendered=self._render != "never")

    def _check(self, request: ResetEpisode.Request) -> None:
        """Refuse what cannot be started, before anything is touched.

        Raises:
            SimulationError: unknown suite, task, initial state or seed.
        """
        spec = task_spec(request.suite, request.task)
        states = len(load_init_states(spec))
        if not -1 <= request.init_state < states:
            raise SimulationError(
                f"init_state of {spec.suite} task {spec.task}: expected 0..{states - 1}, or -1 for a random placement, "
                f"got {request.init_state}"
            )
        if not 0 <= request.seed < 2**32:
            raise SimulationError(f"seed: expected an integer 0..2^32-1, got {request.seed}")

    def _create(self, suite: str, task: int) -> LiberoEnv:
        self._diagnostics.set("episode", OK, f"creating {suite} task {task}")
        env = LiberoEnv(suite, task, image_size=self._image_size, render=self._render != "never")
        self._topics.use(env)
        return env

    def _begin(self, request: ResetEpisode.Request) -> None:
        self._env = None
        self._env = env = self._current.of(request.suite, request.task)
        env.reset(None if request.init_state < 0 else request.init_state, seed=request.seed)
        self._period_ns = round(env.control_dt * 1e9)
        self._ticks += 1
        self._command, self._gripper = None, -1.0
        self._last_tick = time.monotonic()
        self._deadline = self._last_tick + env.control_dt
        self._status = EpisodeStatus(
            episode=self._status.episode + 1,
            suite=env.suite,
            task=env.task,
            init_state=request.init_state,
            seed=request.seed,
            instruction=env.instruction,
            state=EpisodeStatus.RUNNING,
            max_steps=env.max_steps,
        )
        self.get_logger().info(f"episode {self._status.episode}: {env.suite} task {env.task}, '{env.instruction}'")
        self._diagnostics.set("episode", OK, "running", suite=env.suite, task=env.task)

    def _take(self, action: Action) -> None:
        """Lockstep: execute the command that was asked for. Real time: keep it for the next tick."""
        status = self._status
        if status.state != EpisodeStatus.RUNNING or action.episode != status.episode:
            return
        if self._realtime:
            self._command, self._command_tick = action, self._ticks
        elif action.step == status.step:
            rendered = self._render == "always" or (self._render == "on_demand" and action.remaining == 0)
            self._step(_values(action), rendered=rendered, due=action.remaining == 0)
        elif action.step > status.step:
            self._refuse(f"action: expected one for step {status.step}, got step {action.step}")

    def _tick(self) -> None:
        """Real time: one control period is over."""
        assert self._env is not None
        period = self._env.control_dt
        now = time.monotonic()
        # After a delay of more than a period the arm does not rush to catch up.
        self._deadline = max(self._deadline + period, now)
        # smoothed over about a second
        self._speed += 0.05 * (min(2.0, period / (now - self._last_tick)) - self._speed)
        self._last_tick = now
        self._report_speed()
        command = self._command
        if command is None or self._ticks - self._command_tick >= COMMAND_PERIODS:
            values: NDArray[np.float32] = np.zeros(ACTION_DIM, dtype=np.float32)
            values[GRIPPER] = self._gripper
        else:
            values = _values(command)
        self._step(values, rendered=self._render != "never", due=True)

    def _report_speed(self) -> None:
        level = OK if self._speed >= SLOW else WARN
        message = "real time" if level == OK else "slower than real time: latency figures are flattered"
        self._diagnostics.set("speed", level, message, real_time_factor=f"{self._speed:.2f}")

    def _step(self, values: NDArray[np.float32], *, rendered: bool, due: bool) -> None:
        assert self._env is not None
        status = self._status
        try:
            success = self._env.step(values, render=rendered)
        except ActionError as error:
            self._command = None
            self._refuse(str(error))
            return
        except SimulationError as error:
            # this episode is lost, and says nothing about the policy; the next reset starts from a sound state
            self._command = None
            self.get_logger().error(str(error))
            self._diagnostics.set("episode", ERROR, str(error))
            self._end(EpisodeStatus.ABORTED, str(error))
            return
        self._gripper = float(values[GRIPPER])
        self._ticks += 1
        status.executed = values
        status.step += 1
        status.message = ""
        if success:
            status.state = EpisodeStatus.SUCCESS
        elif status.step >= status.max_steps:
            status.state = EpisodeStatus.TIMEOUT
        status.observation_due = due and status.state == EpisodeStatus.RUNNING
        self._publish(rendered=rendered)

    def _refuse(self, message: str) -> None:
        """Say why a command was not executed; the episode waits where it was."""
        self.get_logger().error(message)
        self._diagnostics.set("episode", ERROR, message)
        self._status.message = message
        self._status_publisher.publish(self._status)

    def _end(self, state: int, message: str) -> None:
        self._status.state = state
        self._status.message = message
        self._status.observation_due = False
        self._status_publisher.publish(self._status)

    def _publish(self, *, rendered: bool) -> None:
        """Publish the present moment; the status goes last, because it asks for the answer."""
        assert self._env is not None
        status = self._status
        stamp = to_stamp(self._ticks * self._period_ns)
        status.header.stamp = stamp
        if status.step == 0:
            status.observation_due = True
        state = (status.episode, status.step, self._env.privileged_state()) if self._privileged else None
        images = dict(self._env.observe().images) if rendered else {}
        self._topics.publish(stamp, self._env.robot_state(), images, state)
        self._status_publisher.publish(status)
        if status.state != EpisodeStatus.RUNNING:
            outcome = "success" if status.state == EpisodeStatus.SUCCESS else "step limit reached"
            self.get_logger().info(f"episode {status.episode}: {outcome} after {status.step} steps")
            self._diagnostics.set("episode", OK, outcome)


def _known(endpoints: list[Any]) -> bool:
    """Whether discovery has told the names of these nodes already: they come after their topics."""
    return all("UNKNOWN" not in info.node_name for info in endpoints)


def _values(action: Action) -> NDArray[np.float32]:
    return np.array(action.values, dtype=np.float32)


def main(args: list[str] | None = None) -> int:
    """Entry point of the executable `sim_bridge`."""
    return run_node(BridgeNode, args)


if __name__ == "__main__":
    sys.exit(main())
