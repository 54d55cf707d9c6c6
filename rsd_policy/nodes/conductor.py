"""Conducts episodes over ROS: reset, watch, collect what happened, notice when a node has gone silent."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rsd_msgs.msg import Action, ActionChunk, EpisodeStatus
from rsd_msgs.srv import ResetEpisode

from rsd_policy.errors import EpisodeError
from rsd_policy.evaluation.protocol import EpisodeSpec
from rsd_policy.evaluation.results import FAILURE, SUCCESS, ChunkRecord, EpisodeResult
from rsd_policy.nodes.diagnostics import ERROR, STALE
from rsd_policy.nodes.messages import chunk_from_msg, to_nanoseconds
from rsd_policy.nodes.runtime import COMMANDS
from rsd_policy.observation import ACTION_DIM

RESET_TIMEOUT_S = 200.0
"""Longer than the bridge's own limit, so that its explanation arrives."""

FAULT_GRACE_S = 3.0
"""A node may report an error and recover (a late image); an error that lasts this long ends the episode."""

COLLECT_S = 5.0
"""After the last step, chunks that are still on their way are awaited this long."""


class GraphError(EpisodeError):
    """The graph is not the one that was asked for: no further episode can be run on it."""


class SilentNodeError(GraphError):
    """A node of the graph does not answer any more."""


class OtherPolicyError(GraphError):
    """The arm is driven by another policy, or in another mode, than the run records."""


class Conductor:
    """Runs one episode at a time on a graph that is up.

    Args:
        node: the node to speak through.
        executor: the executor that spins it; the conductor spins it while it waits.
        policy_node: name of the node that publishes chunks.
        others: names of the other nodes of the graph. What nodes outside of it report as errors is not ours to judge.
        realtime: the simulation does not wait, so that observations may remain without a chunk.
        stall_timeout_s: wall time. In lockstep an episode is given up when nothing moves for so long; in real time,
            where the simulation moves by itself, when a node says nothing for so long.
        start_timeout_s: wall time from the start of a process to its first answer.
        driver: (mode, policy_sha256) of the chunks that the run records; None: any.
        loads_in_episode: the driver prepares itself when an episode has begun (the expert builds its own simulation):
            its first chunk of an episode may take `start_timeout_s`.
    """

    def __init__(
        self,
        node: Node,
        executor: SingleThreadedExecutor,
        *,
        policy_node: str,
        others: Collection[str] = ("sim_bridge", "action_executor"),
        realtime: bool,
        stall_timeout_s: float,
        start_timeout_s: float = 60.0,
        driver: tuple[str, str] | None = None,
        loads_in_episode: bool = False,
    ) -> None:
        self._node = node
        self._executor = executor
        self._policy_node = policy_node
        self._prefix = node.get_namespace().strip("/")
        self._nodes = {f"{self._prefix}/{name}".lstrip("/") for name in (policy_node, *others)}
        self._realtime = realtime
        self._stall_timeout_s = stall_timeout_s
        self.start_timeout_s = start_timeout_s
        self._driver = driver
        self._other: ActionChunk | None = None
        self._loads_in_episode = loads_in_episode
        self._statuses: list[EpisodeStatus] = []
        self._chunks: dict[int, ActionChunk] = {}
        self._last_action: Action | None = None
        self._episode = 0
        self._progress = self._status_at = self._action_at = time.monotonic()
        self._faults: dict[str, tuple[float, str]] = {}
        self._inactive: dict[str, str] = {}
        self._early: list[EpisodeStatus | ActionChunk] = []
        node.create_subscription(EpisodeStatus, "episode", self._on_status, COMMANDS)
        node.create_subscription(ActionChunk, "action_chunk", self._on_chunk, COMMANDS)
        node.create_subscription(Action, "action", self._on_action, COMMANDS)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 100)
        self._reset = node.create_client(ResetEpisode, "sim_bridge/reset")

    def run_episode(self, spec: EpisodeSpec, on_step: Callable[[int, float | None], None]) -> EpisodeResult:
        """Run one episode to its end.

        Args:
            spec: which.
            on_step: called with the steps done and the ms of the latest inference.

        Raises:
            GraphError: a node does not answer, or chunks of another policy came.
            EpisodeError: the episode was refused or given up.
        """
        start = time.monotonic()
        instruction = self._begin(spec)
        shown = -1
        while self._latest().state == EpisodeStatus.RUNNING:
            self._executor.spin_once(timeout_sec=0.5)
            self._check()
            step = self._latest().step
            if step != shown:
                shown = step
                latest = max(self._chunks, default=None)
                on_step(step, None if latest is None else float(self._chunks[latest].inference_ms))
        end = self._latest()
        if end.state == EpisodeStatus.ABORTED:
            raise EpisodeError(f"sim_bridge gave the episode up: {end.message}")
        self._collect()
        self._check_driver()
        return EpisodeResult(
            spec=spec,
            outcome=SUCCESS if end.state == EpisodeStatus.SUCCESS else FAILURE,
            steps=end.step,
            instruction=instruction,
            actions=self._actions(end.step),
            chunks=self._records(),
            wall_s=time.monotonic() - start,
        )

    def faults(self) -> list[str]:
        """What the nodes report as errors at present."""
        return [f"{name}: {message}" for name, (_, message) in self._faults.items()]

    # -- beginning

    def _begin(self, spec: EpisodeSpec) -> str:
        """Reset the bridge; returns the instruction."""
        self._episode = 0
        self._statuses, self._chunks, self._early = [], {}, []
        self._last_action = self._other = None
        if not self.spin_until(self._reset.service_is_ready, self.start_timeout_s):
            raise SilentNodeError(f"sim_bridge: expected its service reset within {self.start_timeout_s:.0f} s")
        request = ResetEpisode.Request(suite=spec.suite, task=spec.task, init_state=spec.trial, seed=spec.seed)
        future = self._reset.call_async(request)
        if not self.spin_until(future.done, RESET_TIMEOUT_S):
            raise SilentNodeError(f"sim_bridge: expected a reset within {RESET_TIMEOUT_S:.0f} s, got no answer")
        response: Any = future.result()
        if not response.accepted:
            raise EpisodeError(f"sim_bridge refused {spec}: {response.message}")
        self._episode = response.episode
        self._progress = self._status_at = self._action_at = time.monotonic()
        for msg in self._early:
            (self._on_status if isinstance(msg, EpisodeStatus) else self._on_chunk)(msg)
        if not self.spin_until(lambda: bool(self._statuses), self._stall_timeout_s):
            raise SilentNodeError("sim_bridge: expected the state of the new episode, got none")
        return str(response.instruction)

    def spin_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Spin until the condition holds; False when it does not within the time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._executor.spin_once(timeout_sec=0.1)
        return True

    # -- what happens

    def _latest(self) -> EpisodeStatus:
        return self._statuses[-1]

    def _on_status(self, msg: EpisodeStatus) -> None:
        if self._episode == 0:
            self._early.append(msg)  # the first messages can overtake the answer to the reset
        if msg.episode != self._episode:
            return
        if self._statuses and msg.step < self._latest().step:
            return
        # The same step comes again when the bridge asks again (no progress), refuses a command, or gives up.
        if self._statuses and msg.step == self._latest().step:
            self._statuses[-1] = msg
            return
        self._statuses.append(msg)
        self._status_at = time.monotonic()
        # in real time the simulation goes on by itself, and only a chunk shows that the policy lives
        if not self._realtime:
            self._progress = self._status_at

    def _on_chunk(self, msg: ActionChunk) -> None:
        if self._episode == 0:
            self._early.append(msg)
            return
        if self._driver not in (None, (msg.mode, msg.policy_sha256)) and msg.episode == self._episode:
            self._other = msg
        if msg.verified and msg.episode == self._episode:
            stamp = to_nanoseconds(msg.header.stamp)
            if stamp not in self._chunks:
                self._progress = time.monotonic()
            self._chunks[stamp] = msg  # an audited chunk comes twice, the second time with the audit's outcome

    def _on_action(self, msg: Action) -> None:
        self._last_action = msg
        self._action_at = time.monotonic()

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        now = time.monotonic()
        for status in msg.status:
            if status.name.partition(":")[0] not in self._nodes:
                continue
            if status.level == STALE:
                self._inactive[status.name.partition(":")[0]] = status.message
            else:
                self._inactive.pop(status.name.partition(":")[0], None)
            if status.level == ERROR:
                since = self._faults.get(status.name, (now, ""))[0]
                self._faults[status.name] = (since, status.message)
            else:
                self._faults.pop(status.name, None)

    def _check(self) -> None:
        """Give the episode up when a node reports an error that lasts, or has gone silent."""
        self._check_driver()
        status = self._latest()
        now = time.monotonic()
        if status.state == EpisodeStatus.RUNNING and status.message:
            raise EpisodeError(f"sim_bridge refused the command of step {status.step}: {status.message}")
        for name, (since, message) in self._faults.items():
            if now - max(since, self._progress) > FAULT_GRACE_S:
                raise EpisodeError(f"{name}: {message}")
        silent = self._silent(now)
        if silent is not None:
            full = f"{self._prefix}/{silent}".lstrip("/")
            said = self._inactive.get(full)
            if said is not None:
                raise SilentNodeError(
                    f"{silent} was deactivated in the episode (it says '{said}' at step {status.step}); a run needs it "
                    "active to its end: call again"
                )
            faults = [m for name, (_, m) in self._faults.items() if name.partition(":")[0] == full]
            reports = "".join(f"; it reports {message}" for message in faults)
            raise SilentNodeError(
                f"{silent} is silent: nothing came from it for {self._patience():.0f} s at step {status.step}{reports} "
                "(stall_timeout and start_timeout in config/eval.yaml say how long that may last)"
            )

    def _check_driver(self) -> None:
        """A run must not record what another policy did."""
        if self._other is None or self._driver is None:
            return
        mode, digest = self._driver
        nodes = self._node.get_publishers_info_by_topic("action_chunk")
        names = ", ".join(sorted(f"{n.node_namespace.rstrip('/')}/{n.node_name}" for n in nodes))
        raise OtherPolicyError(
            f"action_chunk: expected mode '{mode}' of policy {digest[:12] or 'without checkpoint'}, got mode "
            f"'{self._other.mode}' of policy {self._other.policy_sha256[:12] or 'without checkpoint'}; chunks are "
            f"published by {names or 'nobody any more'}: end the node that is not of this run or has other parameters"
        )

    def _silent(self, now: float) -> str | None:
        """The node that has said nothing for too long, or None."""
        limit = self._patience()
        if not self._realtime:
            return self._whose_turn() if now - self._progress > limit else None
        if now - min(self._status_at, self._progress, self._action_at) <= limit:
            return None
        if now - self._status_at > limit / 2:
            return "sim_bridge"  # without observations and clock the others have nothing to say
        return self._policy_node if now - self._progress > limit else "action_executor"

    def _patience(self) -> float:
        loading = self._loads_in_episode and not self._chunks
        return max(self._stall_timeout_s, self.start_timeout_s) if loading else self._stall_timeout_s

    def _whose_turn(self) -> str:
        status = self._latest()
        if status.observation_due and to_nanoseconds(status.header.stamp) not in self._chunks:
            return self._policy_node
        action = self._last_action
        if action is None or (action.episode, action.step) != (status.episode, status.step):
            return "action_executor"
        return "sim_bridge"

    # -- the end

    def _collect(self) -> None:
        """Wait for chunks that the last status overtook."""
        asked = [to_nanoseconds(s.header.stamp) for s in self._statuses if s.observation_due]
        if not self._realtime and not self.spin_until(lambda: all(stamp in self._chunks for stamp in asked), COLLECT_S):
            raise EpisodeError(f"{self._policy_node}: expected {len(asked)} chunks, got {len(self._chunks)}")
        if not self._chunks:
            raise EpisodeError(f"{self._policy_node} gave no chunk: the episode says nothing about the policy")

    def _actions(self, steps: int) -> NDArray[np.float32]:
        executed = {status.step: status.executed for status in self._statuses}
        missing = [step for step in range(1, steps + 1) if step not in executed]
        if missing:
            raise EpisodeError(f"sim_bridge: expected {steps} states, {len(missing)} did not arrive")
        return np.array([executed[step] for step in range(1, steps + 1)], dtype=np.float32).reshape(-1, ACTION_DIM)

    def _records(self) -> tuple[ChunkRecord, ...]:
        steps = {to_nanoseconds(status.header.stamp): status.step for status in self._statuses}
        return tuple(
            ChunkRecord.from_chunk(steps[stamp], chunk_from_msg(msg))
            for stamp, msg in sorted(self._chunks.items())
            if stamp in steps
        )
