"""eval_node: brings the managed nodes up, conducts the episodes, and keeps the results."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import uninstall_signal_handlers

from rsd_policy.errors import EpisodeError
from rsd_policy.evaluation.protocol import EXPERT, EvalConfig, parse_indices
from rsd_policy.evaluation.recorder import Recorder
from rsd_policy.evaluation.results import ERROR, EpisodeResult
from rsd_policy.exit_status import DONE, NOT_RUN
from rsd_policy.graph.supervisor import FOREIGN_DISCOVERY
from rsd_policy.libero import EVALUATED_SUITES
from rsd_policy.nodes.conductor import Conductor, GraphError, SilentNodeError
from rsd_policy.nodes.parameters import (
    declare_bool,
    declare_choice,
    declare_float,
    declare_int,
    declare_policy_options,
    declare_setting,
    declare_text,
)
from rsd_policy.nodes.runtime import conduct_with
from rsd_policy.reports.report import write_outputs
from rsd_policy.reports.tables import print_summary
from rsd_policy.settings import CLOCKS, DEFAULT_MODE, MODES, SHARED

LOAD_TIMEOUT_S = 900.0
"""Configuring loads and warms up a policy; one of 7B parameters from a slow disk takes minutes."""


class EvalNode(Node):
    """Its parameters are the arguments of `rsd eval`."""

    def __init__(self) -> None:
        super().__init__("eval_node")
        self.suite = declare_choice(self, "task_suite", EVALUATED_SUITES, "Suite of LIBERO or LIBERO-PRO")
        self.tasks = declare_text(self, "tasks", "0-2", "Tasks, such as 0-9 or 0,3")
        self.trials = declare_text(self, "trials", "0", "Canonical initial states of each task, such as 20-49 or 0,3")
        self.policy = declare_text(self, "policy", "mini", "'mini', 'expert', or the directory of a checkpoint")
        self.mode = declare_choice(self, "mode", MODES, "Inference mode", DEFAULT_MODE)
        self.alpha, self.norm_key, self.base = declare_policy_options(self)
        self.clock = declare_choice(self, "clock", CLOCKS, "When the simulation steps")
        self.seed = declare_int(self, "seed", 0, 0, 2**32 - 1, "Places the fixtures; protocol: 0")
        self.device = declare_text(self, "device", "cpu", "torch device of the policy")
        self.shared = {setting.name: declare_setting(self, setting) for setting in SHARED}
        self.out = declare_text(self, "out", "", "Results; empty: out/eval-<name made from the arguments>")
        self.report = declare_bool(self, "report", True, "Write summary and report and print the table at the end")
        self.stall_timeout = declare_float(
            self, "stall_timeout", 10.0, 1.0, 3600.0, "Wall time in which each node must show itself in an episode, s"
        )
        self.start_timeout = declare_float(
            self, "start_timeout", 60.0, 1.0, 3600.0, "Wall time from the start of a process to its first answer, s"
        )
        self.policy_node = declare_text(self, "policy_node", "policy_node", "Node that publishes the chunks")
        descriptor = ParameterDescriptor(description="Lifecycle nodes to bring up, in this order", read_only=True)
        self.managed: list[str] = self.declare_parameter(
            "managed_nodes", ["policy_node", "action_executor"], descriptor
        ).value

    def config(self) -> EvalConfig:
        """The evaluation that the parameters describe.

        Raises:
            ArgumentError: a parameter is out of range.
            CheckpointError: the checkpoint is missing or altered.
        """
        config = EvalConfig(
            suite=self.suite,
            tasks=parse_indices(self.tasks),
            trials=parse_indices(self.trials),
            policy=self.policy,
            mode=self.mode,
            alpha=self.alpha,
            norm_key=self.norm_key,
            base=self.base,
            clock=self.clock,
            seed=self.seed,
            device=self.device,
            **self.shared,
        )
        return config.with_checkpoint()


def _discovery() -> str:
    """What in this shell can keep nodes from finding each other."""
    given = [f"{name}={os.environ[name]}" for name in FOREIGN_DISCOVERY if os.environ.get(name)]
    if os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == "OFF":
        given.append("ROS_AUTOMATIC_DISCOVERY_RANGE=OFF")
    return f"; nodes may not find each other with {', '.join(given)}" if given else ""


def bring_up(node: Node, conductor: Conductor, managed: Sequence[str]) -> None:
    """Configure and activate the managed nodes, in order; those that already are stay as they are.

    Raises:
        SilentNodeError: one does not answer.
        EpisodeError: one cannot be configured or activated.
    """
    start_s = conductor.start_timeout_s
    for name in managed:
        get_state = node.create_client(GetState, f"{name}/get_state")
        change_state = node.create_client(ChangeState, f"{name}/change_state")

        def call(client: Any, request: Any, timeout_s: float, name: str = name) -> Any:
            if not conductor.spin_until(client.service_is_ready, start_s):
                raise SilentNodeError(
                    f"{name}: expected it to start within {start_s:.0f} s, it is not there{_discovery()}"
                )
            future = client.call_async(request)
            if not conductor.spin_until(future.done, timeout_s):
                raise SilentNodeError(f"{name} is silent: no answer within {timeout_s:.0f} s")
            return future.result()

        state = call(get_state, GetState.Request(), start_s).current_state.id
        steps = {
            State.PRIMARY_STATE_UNCONFIGURED: (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE),
            State.PRIMARY_STATE_INACTIVE: (Transition.TRANSITION_ACTIVATE,),
        }
        for transition in steps.get(state, ()):
            request = ChangeState.Request(transition=Transition(id=transition))
            if not call(change_state, request, LOAD_TIMEOUT_S).success:
                verb = "configured" if transition == Transition.TRANSITION_CONFIGURE else "activated"
                conductor.spin_until(lambda: bool(conductor.faults()), 2.0)
                why = "; ".join(conductor.faults()) or "see its log"
                raise EpisodeError(f"{name} could not be {verb}: {why}")


def conduct(conductor: Conductor, recorder: Recorder) -> None:
    """Run every episode that has no result yet; one that fails is recorded as an error and the next one is run.

    Raises:
        GraphError: the graph is wedged, or another one than was asked for.
    """
    for spec in recorder.pending():
        recorder.started(spec)
        try:
            result = conductor.run_episode(spec, partial(recorder.stepped, spec))
        except EpisodeError as error:
            recorder.finished(EpisodeResult(spec=spec, outcome=ERROR, steps=0, error=str(error)))
            if isinstance(error, GraphError):
                raise
        else:
            recorder.finished(result)


def evaluate(node: EvalNode) -> int:
    """Run the evaluation; returns the exit status."""
    config = node.config()
    out = Path(node.out).expanduser() if node.out else Path("out") / f"eval-{config.name()}"
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    conductor = Conductor(
        node,
        executor,
        policy_node=node.policy_node,
        realtime=node.clock == "realtime",
        stall_timeout_s=node.stall_timeout,
        start_timeout_s=node.start_timeout,
        driver=(config.mode or EXPERT, config.policy_sha256 or ""),
        loads_in_episode=node.policy_node not in node.managed,
    )
    with Recorder(out, config) as recorder:
        try:
            if recorder.pending():
                bring_up(node, conductor, node.managed)
                conduct(conductor, recorder)
            complete = not recorder.pending()
        finally:
            if node.report:
                # Who launched this sends further signals while others end; a report takes seconds, and is what is left.
                # rclpy would put its handlers back as it shuts down.
                uninstall_signal_handlers()
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                summary = write_outputs(recorder.store)
    if node.report:
        print_summary(summary, out)
    return DONE if complete else NOT_RUN


def main(args: list[str] | None = None) -> int:
    """Entry point of the executable `eval_node`."""
    return conduct_with(EvalNode, evaluate, "finished episodes are kept, the same call resumes", args)


if __name__ == "__main__":
    sys.exit(main())
