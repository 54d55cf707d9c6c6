"""expert_node: the scripted expert over ROS, in simulation only.

It keeps a mirror of the simulated world, sets it to each `sim_state`, and answers each tick of the episode with a chunk
of one action. Bridge, executor and protocol are the same as for a policy; only the privileged state is not.
"""

from __future__ import annotations

import queue
import sys
import threading
import time

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rsd_msgs.msg import ActionChunk as ActionChunkMsg
from rsd_msgs.msg import EpisodeStatus
from std_msgs.msg import Float64MultiArray

from rsd_policy.errors import RSDError
from rsd_policy.nodes.diagnostics import ERROR, OK, Diagnostics
from rsd_policy.nodes.messages import chunk_to_msg
from rsd_policy.nodes.runtime import COMMANDS, run_node
from rsd_policy.observation import ActionChunk, ChunkStats
from sim_bridge.crew import CurrentEnv
from sim_bridge.expert import ScriptedExpert
from sim_bridge.libero_env import LiberoEnv


class ExpertNode(Node):
    """Subscribes to `episode` and `sim_state`, publishes `action_chunk`."""

    def __init__(self) -> None:
        super().__init__("expert")
        self._diagnostics = Diagnostics(self, "")
        self._diagnostics.set("expert", OK, "waiting for an episode")
        self._publisher = self.create_publisher(ActionChunkMsg, "action_chunk", COMMANDS)
        self._current = CurrentEnv(self._create)
        self._expert: ScriptedExpert | None = None
        self._episode = 0
        self._states: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._answer: ActionChunkMsg | None = None
        self._answered = (0, -1)
        self._status: EpisodeStatus | None = None
        self._messages: queue.SimpleQueue[EpisodeStatus | Float64MultiArray | None] = queue.SimpleQueue()
        self.fatal_error: BaseException | None = None
        # Building a mirror takes seconds; the node goes on answering the graph meanwhile.
        self._thread = threading.Thread(target=self._run, name="expert", daemon=True)
        self._thread.start()
        self.create_subscription(Float64MultiArray, "sim_state", self._messages.put, COMMANDS)
        self.create_subscription(EpisodeStatus, "episode", self._messages.put, COMMANDS)

    def close(self) -> None:
        """End the thread and close the mirror."""
        self._messages.put(None)
        self._thread.join(timeout=15.0)

    def _run(self) -> None:
        try:
            while True:
                message = self._messages.get()
                if message is None:
                    return
                if isinstance(message, EpisodeStatus):
                    self._status = message
                else:
                    episode, step = int(message.data[0]), int(message.data[1])
                    self._states = {(episode, step): np.array(message.data[2:])}
                self._try_answer()
        except BaseException as error:  # handed to the main thread, which ends the node with it
            if self.context.ok():
                self.fatal_error = error
                self.context.try_shutdown()
        finally:
            self._current.close()

    def _try_answer(self) -> None:
        """Act when the tick and the state of the same moment are there."""
        status = self._status
        if status is None or status.state != EpisodeStatus.RUNNING:
            return
        tick = (status.episode, status.step)
        if tick == self._answered and self._answer is not None:
            self._publisher.publish(self._answer)
            return
        state = self._states.get(tick)
        if state is None:
            return
        try:
            self._answer = self._act(status, state)
        except RSDError as error:
            self.get_logger().error(str(error))
            self._diagnostics.set("expert", ERROR, str(error))
            return
        self._answered = tick
        self._publisher.publish(self._answer)

    def _act(self, status: EpisodeStatus, state: NDArray[np.float64]) -> ActionChunkMsg:
        env = self._mirror(status)
        env.set_privileged_state(state)
        if status.episode != self._episode:
            # The expert looks at the world when it starts: that has to be the mirrored one.
            self._expert = ScriptedExpert(env)
            self._expert.reset()
            self._episode = status.episode
        assert self._expert is not None
        start = time.perf_counter()
        action = self._expert.act()
        elapsed_ms = (time.perf_counter() - start) * 1e3
        self._diagnostics.set("expert", OK, self._expert.phase, failed=self._expert.failed)
        stats = ChunkStats(stage_ms={"expert": elapsed_ms}, first_action_ms=elapsed_ms, total_ms=elapsed_ms)
        chunk = ActionChunk(actions=np.asarray(action, np.float32)[None], stats=stats)
        return chunk_to_msg(chunk, status.header.stamp, status.episode, "expert")

    def _mirror(self, status: EpisodeStatus) -> LiberoEnv:
        """The mirror of the episode's world; a new task takes seconds."""
        env = self._current.of(status.suite, status.task)
        if status.episode != self._episode:
            env.reset(None if status.init_state < 0 else status.init_state, seed=status.seed)
        return env

    def _create(self, suite: str, task: int) -> LiberoEnv:
        self._diagnostics.set("expert", OK, f"creating {suite} task {task}")
        return LiberoEnv(suite, task, render=False)


def main(args: list[str] | None = None) -> int:
    """Entry point of the executable `expert_node`."""
    return run_node(ExpertNode, args)


if __name__ == "__main__":
    sys.exit(main())
