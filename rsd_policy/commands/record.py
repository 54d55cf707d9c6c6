"""`rsd record`: a simulated episode, or what runs in this ROS domain, as a rosbag2 bag."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rsd_policy.errors import ArgumentError, EpisodeError, SetupError
from rsd_policy.evaluation.protocol import DEFAULT_SUITE, EvalConfig
from rsd_policy.evaluation.provenance import hardware, versions
from rsd_policy.exit_status import DONE, INTERRUPTED, NOT_RUN, NOT_SET_UP
from rsd_policy.robots.contract import DEFAULT_ROBOT, Contract, load_contract
from rsd_policy.settings import CLOCKS, DEFAULT_MODE, MODES, shared_settings


def main(argv: list[str]) -> int:
    """Run `rsd record` with these arguments. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    # MCAP, zstd and the message types are the recorder's: imported where it runs
    contract = load_contract(arguments.robot)
    out: Path = arguments.out.expanduser()
    if out.exists():
        raise ArgumentError(f"--out {out}: expected a path where nothing is; a recording is never overwritten")
    return _attach(contract, out) if arguments.attach else _episode(arguments, contract, out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rsd record",
        description="Record the topics of a robot's contract as a rosbag2 bag (MCAP, zstd): one simulated episode, or "
        "with --attach whatever runs in this ROS domain, until Ctrl-C.",
        epilog="Exit status: 0 done, 2 wrong arguments, 3 not set up or checkpoint invalid, 4 it could not run.",
    )
    parser.add_argument("--out", type=Path, default=Path("out/bag"), metavar="BAG", help="new directory (%(default)s)")
    parser.add_argument("--attach", action="store_true", help="record what runs in this domain (ROS_DOMAIN_ID)")
    parser.add_argument(
        "--robot", default=DEFAULT_ROBOT, metavar="ROBOT", help="contract: a name or a path (%(default)s)"
    )
    episode = parser.add_argument_group("the simulated episode")
    episode.add_argument("--task-suite", default=DEFAULT_SUITE, metavar="SUITE", help="LIBERO suite (%(default)s)")
    episode.add_argument("--task", type=int, default=0, metavar="N", help="task of the suite (%(default)s)")
    episode.add_argument("--trial", type=int, default=0, metavar="N", help="canonical initial state (%(default)s)")
    episode.add_argument("--mode", default=DEFAULT_MODE, metavar="MODE", help=f"{', '.join(MODES)} (%(default)s)")
    episode.add_argument("--policy", default="mini", metavar="POLICY", help="mini or a checkpoint (%(default)s)")
    episode.add_argument("--alpha", type=float, metavar="P", help="mode gated: the bound (the policy's)")
    episode.add_argument("--norm-key", metavar="KEY", help="OpenVLA: whose action statistics to use")
    episode.add_argument("--base", metavar="POLICY", help="what an adapter or heads stand on")
    episode.add_argument("--clock", default=CLOCKS[0], metavar="CLOCK", help=f"{', '.join(CLOCKS)} (%(default)s)")
    episode.add_argument("--device", default="cpu", help="torch device of the policy (%(default)s)")
    return parser


def _provenance(contract: Contract, more: dict[str, Any]) -> str:
    content = {"contract": contract.text, "robot": contract.robot, "versions": versions(), "hardware": hardware()}
    return json.dumps(content | more)


def _episode(arguments: argparse.Namespace, contract: Contract, out: Path) -> int:
    """Run the evaluation graph for one episode, with a recorder in it."""
    from rsd_policy.evaluation.recorder import open_run
    from rsd_policy.evaluation.store import ResultStore
    from rsd_policy.graph.bringup import record_node
    from rsd_policy.graph.supervisor import run_eval

    config = EvalConfig(
        suite=arguments.task_suite,
        tasks=(arguments.task,),
        trials=(arguments.trial,),
        policy=arguments.policy,
        mode=arguments.mode,
        alpha=arguments.alpha,
        norm_key=arguments.norm_key,
        base=arguments.base,
        clock=arguments.clock,
        device=arguments.device,
        **shared_settings(),
    ).with_checkpoint()
    recorder = record_node(
        robot=str(contract.path), out=str(out.resolve()), provenance=_provenance(contract, {"run": config.to_json()})
    )
    with tempfile.TemporaryDirectory(prefix="rsd-record-") as folder:
        open_run(Path(folder), config).close()
        status = run_eval(config, Path(folder), more=[recorder])
        if status == NOT_SET_UP:
            raise SetupError("the episode could not begin; eval_node has printed why")
        with ResultStore.open_results(Path(folder)) as store:
            results = store.episodes()
        if status != DONE or not results:
            raise EpisodeError(f"the episode could not be run (exit status {status}); eval_node has printed why")
        result = results[0]
    print(f"{out}: {result.spec}, {result.outcome} after {result.steps} steps, {len(result.chunks)} chunks")
    return DONE


def _attach(contract: Contract, out: Path) -> int:
    """Record in this process, in the user's own domain."""
    from rsd_policy.graph.bringup import record_node
    from rsd_policy.graph.supervisor import ros_arguments

    spec = record_node(robot=str(contract.path), out=str(out.resolve()), provenance=_provenance(contract, {}))
    print(
        f"recording {len(contract.topics)} topics of {contract.robot} in domain {os.environ.get('ROS_DOMAIN_ID', '0')} "
        f"to {out}; Ctrl-C ends it",
        file=sys.stderr,
    )
    from rsd_policy.nodes.record_node import main as record

    status = record(["record_node", *ros_arguments(spec, None)])
    return status if status in (DONE, INTERRUPTED) else NOT_RUN
