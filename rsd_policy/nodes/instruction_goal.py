"""The action `execute_instruction`: one goal at a time, with feedback and cancel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.timer import Timer
from rsd_msgs.action import ExecuteInstruction

from rsd_policy.observation import MAX_INSTRUCTION_CHARS

CHECK_PERIOD_S = 0.05
"""How often a running goal is checked for cancel and time-out."""


class _Server(ActionServer):
    """Lets a goal be in execution without a callback that runs all the time.

    A coroutine that waits makes rclpy's executor spin at full load. So `goal.execute()` only changes the state, and the
    callback that gives the result is run when the goal has ended.
    """

    def notify_execute(self, goal_handle: ServerGoalHandle, execute_callback: Callable[..., Any] | None) -> None:
        if execute_callback is not None:
            super().notify_execute(goal_handle, execute_callback)


class InstructionGoal:
    """Holds the goal in execution; the node infers for it as long as `instruction` is not None."""

    def __init__(
        self, node: Node, may_start: Callable[[], str | None], on_start: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        """Serve the action.

        Args:
            node: the node.
            may_start: returns why no goal can be accepted now, or None.
            on_start: called when a goal was accepted, before it is called executing; `instruction` is the goal's.
            on_end: called once a goal is over for whatever reason, in the thread that ended it and before anybody is
                told: a cancel is answered when it has returned. `instruction` is None by then.
        """
        self._node = node
        self._may_start = may_start
        self._on_start, self._on_end = on_start, on_end
        self._lock = threading.Lock()
        self._goal: ServerGoalHandle | None = None
        self._deadline: float | None = None
        self._timer: Timer | None = None
        self._end: tuple[str, str] | None = None
        self._ending = False
        self._chunks = self._compared = self._accepted = 0
        self._server = _Server(
            node,
            ExecuteInstruction,
            "execute_instruction",
            execute_callback=self._finish,
            goal_callback=self._on_request,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
        )

    @property
    def instruction(self) -> str | None:
        """What the goal in execution asks for."""
        goal = self._goal
        return None if goal is None or self._end is not None else goal.request.instruction

    def chunk_done(self, inference_ms: float, accepted: bool | None) -> None:
        """Count a final chunk and send feedback.

        Args:
            inference_ms: its inference time.
            accepted: whether its draft was accepted; None when not compared.
        """
        goal = self._goal
        if goal is None or self._end is not None:
            return
        self._chunks += 1
        self._compared += accepted is not None
        self._accepted += bool(accepted)
        feedback = ExecuteInstruction.Feedback(chunks=self._chunks, inference_ms=inference_ms)
        feedback.acceptance_rate = self._accepted / self._compared if self._compared else 0.0
        goal.publish_feedback(feedback)

    def end(self, outcome: str, message: str) -> None:
        """End the goal in execution, if there is one.

        Args:
            outcome: "succeeded", "aborted" or "canceled".
            message: why, for people.
        """
        with self._lock:
            if self._goal is None or self._end is not None:
                return
            self._end = (outcome, message)
        self._on_end()

    def end_now(self, message: str) -> None:
        """Abort the goal in execution without waiting for the next check: the node stops."""
        self.end("aborted", message)
        self._check()

    def _on_request(self, request: ExecuteInstruction.Goal) -> GoalResponse:
        refusal = self._may_start()
        if self._goal is not None:
            refusal = "another instruction is being executed; cancel it first"
        elif not request.instruction.strip() or len(request.instruction) > MAX_INSTRUCTION_CHARS:
            refusal = f"expected an instruction of 1..{MAX_INSTRUCTION_CHARS} characters"
        elif not request.timeout_s >= 0.0:
            refusal = f"expected timeout_s >= 0 (s; 0 for none), got {request.timeout_s}"
        if refusal is not None:
            self._node.get_logger().warning(f"execute_instruction refused: {refusal}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        self.end("canceled", "canceled")
        return CancelResponse.ACCEPT

    def _on_accepted(self, goal: ServerGoalHandle) -> None:
        self._chunks = self._compared = self._accepted = 0
        with self._lock:
            self._goal, self._end, self._ending = goal, None, False
        self._on_start()
        goal.execute()
        timeout = float(goal.request.timeout_s)
        self._deadline = self._now() + timeout if timeout > 0.0 else None
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self._node.create_timer(CHECK_PERIOD_S, self._check, clock=steady)

    def _check(self) -> None:
        goal = self._goal
        if goal is None or self._ending:
            return
        if self._deadline is not None and self._now() >= self._deadline:
            self.end("aborted", f"not done within {goal.request.timeout_s:g} s")
        if self._end is None:
            return
        # the executor runs _finish later, and until then _check can be called again
        self._ending = True
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
        self._server.notify_execute(goal, self._finish)

    def _finish(self, goal: ServerGoalHandle) -> Any:
        assert self._end is not None
        outcome, message = self._end
        success = False
        if goal.is_cancel_requested:
            goal.canceled()
            message = message if outcome == "canceled" else f"canceled; {message}"
        elif outcome == "succeeded":
            goal.succeed()
            success = True
        else:
            goal.abort()
        self._goal = None
        return ExecuteInstruction.Result(success=success, message=message, chunks=self._chunks)

    def _now(self) -> float:
        return float(self._node.get_clock().now().nanoseconds) * 1e-9
