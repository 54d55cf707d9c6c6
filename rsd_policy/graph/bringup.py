"""The node graphs, described once: `rsd` and the launch files both start them from here. Needs no ROS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from rsd_policy.errors import ArgumentError
from rsd_policy.evaluation.protocol import (
    DEFAULT_SUITE,
    DEFAULT_TASKS,
    EXPERT,
    EvalConfig,
    first_trials,
    format_indices,
    parse_indices,
)
from rsd_policy.libero import EVALUATED_SUITES
from rsd_policy.settings import CLOCKS, DEFAULT_MODE, MODES

ParameterValue: TypeAlias = "bool | int | float | str | Sequence[str]"


@dataclass(frozen=True)
class Argument:
    """An argument of a launch file; its value is text, as launch passes it.

    Attributes:
        choices: allowed values; empty when there is no list of them.
    """

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeSpec:
    """One process of a graph.

    Attributes:
        package: ROS package.
        executable: name of the installed executable, for launch files.
        module: Python module with the same `main`, for `rsd`, which needs no installed package.
        name: node name.
        parameters: name -> value.
        conducts: the graph's work is done when this process ends, and its exit status is the graph's.
        speaks: it prints to the terminal, as the one that conducts does.
    """

    package: str
    executable: str
    module: str
    name: str
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    conducts: bool = False
    speaks: bool = False


EVAL_ARGUMENTS = (
    Argument("task_suite", DEFAULT_SUITE, "Suite of LIBERO or LIBERO-PRO", EVALUATED_SUITES),
    Argument("tasks", DEFAULT_TASKS, "Tasks of the suite, such as 0-9 or 0,3"),
    Argument("num_trials", "1", "N: canonical initial states 0..N-1 of each task are run (1..50)"),
    Argument("trials", "", "Canonical initial states to run in their place, such as 20-49 or 0,3; empty: num_trials"),
    Argument("policy", "mini", f"mini, {EXPERT} (scripted, simulation only), or the directory of a checkpoint"),
    Argument("mode", DEFAULT_MODE, "Inference mode", MODES),
    Argument("alpha", "0", "Mode gated: bound on the deviations of skipped chunks; 0: the checkpoint's own"),
    Argument("norm_key", "", "OpenVLA: whose action statistics to use; empty: the checkpoint has one"),
    Argument("base", "", "Weights that an unmerged adapter or heads stand on; empty: where the checkpoint says"),
    Argument("use_speculative_decoding", "true", "false: mode baseline, whatever mode says (true or false)"),
    Argument("clock", CLOCKS[0], "lockstep: the simulation waits for the policy; realtime: 20 Hz", CLOCKS),
    Argument("device", "cpu", "torch device of the policy: cpu, cuda or cuda:N"),
    Argument("seed", "0", "Places the fixtures; published evaluations: 0"),
    Argument("out", "", "Directory of the results; empty: out/eval-<name made from the arguments>"),
)
"""Arguments of launch/eval.launch.py, with the meaning of the options of `rsd eval`."""


def eval_nodes(
    *,
    task_suite: str,
    tasks: str,
    trials: str,
    policy: str,
    mode: str,
    alpha: float | None = None,
    norm_key: str | None = None,
    base: str | None = None,
    clock: str,
    device: str,
    seed: int,
    out: str,
    report: bool,
) -> list[NodeSpec]:
    """The evaluation graph: sim_bridge, what drives it, action_executor, eval_node.

    Args:
        report: eval_node writes the summary and prints the table (`rsd eval` does that itself).

    The other arguments are those of `EVAL_ARGUMENTS`, with their types.
    """
    expert = policy == EXPERT
    realtime = clock == "realtime"
    # ROS has no None
    options: dict[str, ParameterValue] = {"alpha": alpha or 0.0, "norm_key": norm_key or "", "base": base or ""}
    bridge = NodeSpec(
        "rsd_policy",
        "sim_bridge",
        "sim_bridge.nodes.bridge_node",
        "sim_bridge",
        {"clock": clock, "render": "never" if expert else "on_demand", "publish_privileged_state": expert},
    )
    if expert:
        driver = NodeSpec("rsd_policy", "expert_node", "sim_bridge.nodes.expert_node", "expert")
    else:
        driver = NodeSpec(
            "rsd_policy",
            "policy_node",
            "rsd_policy.nodes.policy_node",
            "policy_node",
            {"policy": policy, "mode": mode, **options, "device": device, "clock": clock, "use_sim_time": realtime},
        )
    executor = NodeSpec(
        "rsd_policy",
        "action_executor",
        "rsd_policy.nodes.action_executor",
        "action_executor",
        {"clock": clock, "use_sim_time": realtime, "execute_provisional": realtime},
    )
    conductor = NodeSpec(
        "rsd_policy",
        "eval_node",
        "rsd_policy.nodes.eval_node",
        "eval_node",
        {
            "task_suite": task_suite,
            "tasks": tasks,
            "trials": trials,
            "policy": policy,
            "mode": mode,
            **options,
            "clock": clock,
            "device": device,
            "seed": seed,
            "out": out,
            "report": report,
            "policy_node": driver.name,
            "managed_nodes": [executor.name] if expert else [driver.name, executor.name],
        },
        conducts=True,
    )
    return [bridge, driver, executor, conductor]


def launched_eval(values: Mapping[str, str]) -> list[NodeSpec]:
    """The evaluation graph of the arguments of a launch file, as text; they are checked before any node starts.

    Raises:
        ArgumentError: one is not what its description says.
    """
    speculative = values["use_speculative_decoding"].strip().lower()
    if speculative not in ("true", "false"):
        raise ArgumentError(
            f"use_speculative_decoding: expected true or false, got '{values['use_speculative_decoding']}'"
        )
    trials = parse_indices(values["trials"]) if values["trials"] else first_trials(_number("num_trials", values, int))
    config = EvalConfig(
        suite=values["task_suite"],
        tasks=parse_indices(values["tasks"]),
        trials=trials,
        policy=values["policy"],
        mode=values["mode"] if speculative == "true" else "baseline",
        alpha=_number("alpha", values, float) or None,
        norm_key=values["norm_key"] or None,
        base=values["base"] or None,
        clock=values["clock"],
        seed=_number("seed", values, int),
        device=values["device"],
    )
    return nodes_of(config, values["out"], report=True)


def nodes_of(config: EvalConfig, out: str, *, report: bool) -> list[NodeSpec]:
    """The evaluation graph of a configuration; `out` and `report` as in `eval_nodes`."""
    return eval_nodes(
        task_suite=config.suite,
        tasks=format_indices(config.tasks),
        trials=format_indices(config.trials),
        policy=config.policy,
        mode=config.mode or DEFAULT_MODE,
        alpha=config.alpha,
        norm_key=config.norm_key,
        base=config.base,
        clock=config.clock,
        device=config.device or "cpu",
        seed=config.seed,
        out=out,
        report=report,
    )


Number = TypeVar("Number", int, float)


def _number(name: str, values: Mapping[str, str], kind: type[Number]) -> Number:
    try:
        return kind(values[name])
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise ArgumentError(f"{name}: expected {what}, got '{values[name]}'") from error


def record_node(*, robot: str, out: str, provenance: str) -> NodeSpec:
    """What records the topics of a robot's contract into a bag.

    Args:
        robot: name or path of the contract.
        out: directory of the bag.
        provenance: JSON that goes into the bag.
    """
    parameters: dict[str, ParameterValue] = {"robot": robot, "out": out, "provenance": provenance}
    return NodeSpec("rsd_policy", "record_node", "rsd_policy.nodes.record_node", "record_node", parameters, speaks=True)


REPLAY_ARGUMENTS = (
    Argument("bag", "", "rosbag2 directory, .mcap, .db3, also .zstd"),
    Argument("robot", "libero_sim", "Contract of the robot: a name of config/robots, or a path"),
    Argument("namespace", "", "Where relative topics of the contract are in the bag"),
    Argument("policy", "", "mini, or the directory of a checkpoint; empty: as recorded, else mini"),
    Argument("mode", "", "Inference mode; empty: as recorded, else speculative", ("", *MODES)),
    Argument("against", "", "What is compared with, as of `rsd replay`; empty: what is in the bag"),
    Argument("instruction", "", "Instead of what the bag says"),
    Argument("device", "cpu", "torch device of the policy: cpu, cuda or cuda:N"),
    Argument("out", "out/replay", "Directory of the report"),
    Argument(
        "source",
        "acknowledged",
        "acknowledged: observation by observation, compared; play: at the pace of the recording, with /clock",
        ("acknowledged", "play"),
    ),
)
"""Arguments of launch/replay.launch.py, with the meaning of the options of `rsd replay`."""


def _replaying_policy(run: Mapping[str, Any], robot: str, device: str, *, clock: str) -> NodeSpec:
    """policy_node for a bag; `run` is that of rsd_policy.bags.session.recorded_run."""
    parameters: dict[str, ParameterValue] = {
        "robot": robot,
        "policy": run["policy"],
        "mode": run["mode"],
        "alpha": run["alpha"] or 0.0,
        "norm_key": run["norm_key"] or "",
        "base": run["base"] or "",
        "device": device,
        "clock": clock,
        "use_sim_time": clock == "realtime",
    }
    return NodeSpec("rsd_policy", "policy_node", "rsd_policy.nodes.policy_node", "policy_node", parameters)


def replay_nodes(run: Mapping[str, Any], *, robot: str, device: str, session: str) -> list[NodeSpec]:
    """policy_node, and what shows it a bag, observation by observation.

    Args:
        run: what answers, of rsd_policy.bags.session.recorded_run.
        robot: path of the contract.
        session: arguments of `rsd replay` with `run`, JSON.
    """
    replay_node = NodeSpec(
        "rsd_policy", "replay_node", "rsd_policy.nodes.replay_node", "replay_node", {"session": session}, conducts=True
    )
    return [_replaying_policy(run, robot, device, clock="lockstep"), replay_node]


def play_node(
    *, bag: str, robot: str, namespace: str, instruction: str, rate: float = 1.0, managed: Sequence[str] = ()
) -> NodeSpec:
    """What sends the inputs of a contract out of a bag as a robot does.

    Args:
        managed: lifecycle nodes that it configures and activates first.
    """
    parameters: dict[str, ParameterValue] = {
        "bag": bag,
        "robot": robot,
        "namespace": namespace,
        "instruction": instruction,
        "rate": rate,
        "managed_nodes": list(managed) or [""],  # ROS has no empty list of texts
    }
    return NodeSpec("rsd_policy", "play_node", "rsd_policy.nodes.play_node", "play_node", parameters, conducts=True)


def play_nodes(
    run: Mapping[str, Any], *, bag: str, robot: str, namespace: str, instruction: str, device: str
) -> list[NodeSpec]:
    """policy_node in real time, and a bag in place of the robot, with its clock."""
    player = play_node(bag=bag, robot=robot, namespace=namespace, instruction=instruction, managed=["policy_node"])
    return [_replaying_policy(run, robot, device, clock="realtime"), player]
