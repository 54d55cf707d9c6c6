"""The action `execute_instruction`: one goal at a time, with feedback and cancel."""

from __future__ import annotations

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


class InstructionGoal:
    """Holds the goal in execution; the node infers for it as long as `instruction` is not None.

    The goal is kept waiting and told its end, instead of an execute callback that runs all the time: a coroutine that
    waits makes rclpy's executor spin at full load.
    """

    def __init__(self, node: Node, may_start: Callable[[], str | None]) -> None:
        """Serve the action.

        Args:
            node: the node.
            may_start: returns why no goal can be accepted now, or None.
        """
        self._node = node
        self._may_start = may_start
        self._goal: ServerGoalHandle | None = None
        self._deadline: float | None = None
        self._timer: Timer | None = None
        self._end: tuple[str, str] | None = None
        self._ending = False
        self.accepted = 0
        """Goals accepted so far: the number of the latest one."""
        self._chunks = self._compared = self._accepted = 0
        self._server = ActionServer(
            node,
            ExecuteInstruction,
            "execute_instruction",
            execute_callback=self._finish,
            goal_callback=self._on_request,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
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
            outcome: "succeeded" or "aborted".
            message: why, for people.
        """
        if self._goal is not None and self._end is None:
            self._end = (outcome, message)

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

    def _on_accepted(self, goal: ServerGoalHandle) -> None:
        self._goal, self._end, self._ending = goal, None, False
        self.accepted += 1
        self._chunks = self._compared = self._accepted = 0
        timeout = float(goal.request.timeout_s)
        self._deadline = self._now() + timeout if timeout > 0.0 else None
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self._node.create_timer(CHECK_PERIOD_S, self._check, clock=steady)

    def _check(self) -> None:
        goal = self._goal
        if goal is None or self._ending:
            return
        if self._end is None:
            if goal.is_cancel_requested:
                self._end = ("canceled", "canceled")
            elif self._deadline is not None and self._now() >= self._deadline:
                self._end = ("aborted", f"not done within {goal.request.timeout_s:g} s")
        if self._end is None:
            return
        # the executor runs _finish later, and until then _check can be called again
        self._ending = True
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
        goal.execute(self._finish)

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
