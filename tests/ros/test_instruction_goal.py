"""How a goal ends when two things happen to it at once."""

from __future__ import annotations

import pytest
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rsd_msgs.action import ExecuteInstruction

from rsd_policy.nodes import instruction_goal
from rsd_policy.nodes.instruction_goal import InstructionGoal


@pytest.fixture(scope="module")
def served(probe):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instruction_goal, "CHECK_PERIOD_S", 3600.0)  # the tests decide when a goal is checked
        server = InstructionGoal(probe.node, lambda: None, lambda: None, lambda: None)
        yield probe, server, ActionClient(probe.node, ExecuteInstruction, "execute_instruction")


def send(probe, client):
    probe.spin_until(client.server_is_ready, 20, "the action server")
    future = client.send_goal_async(ExecuteInstruction.Goal(instruction="pick up the bowl"))
    probe.spin_until(future.done, 20, "an answer to the goal")
    assert future.result().accepted
    return future.result()


def finish(probe, goal):
    future = goal.get_result_async()
    probe.spin_until(future.done, 20, "the goal's result")
    return future.result()


def test_a_goal_that_is_ended_twice_ends_once_and_the_next_one_runs(served):
    probe, server, client = served
    goal = send(probe, client)
    server.end("succeeded", "the task reports success")
    server.end_now("the node stops")
    server.end_now("the node stops")
    result = finish(probe, goal)
    assert (result.status, result.result.success) == (GoalStatus.STATUS_SUCCEEDED, True)
    assert result.result.message == "the task reports success"
    assert server.instruction is None
    goal = send(probe, client)
    assert server.instruction == "pick up the bowl"
    server.end_now("the node stops")
    assert finish(probe, goal).status == GoalStatus.STATUS_ABORTED


def test_a_cancelled_goal_is_no_success_though_the_task_succeeded_meanwhile(served):
    probe, server, client = served
    goal = send(probe, client)
    server.end("succeeded", "the task reports success")
    cancel = goal.cancel_goal_async()
    probe.spin_until(cancel.done, 20, "an answer to the cancel")
    server.end_now("the node stops")
    result = finish(probe, goal)
    assert (result.status, result.result.success) == (GoalStatus.STATUS_CANCELED, False)
    assert result.result.message == "canceled; the task reports success"
