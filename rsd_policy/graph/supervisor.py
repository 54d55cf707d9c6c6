"""Starts the processes of a node graph, watches them, and ends every one of them, whatever happens.

Each process leads a session of its own: Ctrl-C reaches the supervisor alone, and it decides in which order things
end. A supervisor that is killed takes its processes along (`die_with_supervisor` in rsd_policy/nodes/runtime.py).
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rsd_policy import interrupts
from rsd_policy.errors import EpisodeError, SetupError
from rsd_policy.evaluation.protocol import EvalConfig
from rsd_policy.graph.bringup import NodeSpec, ParameterValue, nodes_of
from rsd_policy.settings import EVAL_CONFIG
from rsd_policy.share import shared_path

SUPERVISOR_PID = "RSD_SUPERVISOR_PID"
"""Environment variable that tells a node which process it must not outlive."""

FOREIGN_DISCOVERY = ("ROS_DISCOVERY_SERVER", "ROS_SUPER_CLIENT", "ROS_STATIC_PEERS")
"""Environment variables that tell ROS nodes where else to look for others."""

POLL_S = 0.05

GRACE_S = ((signal.SIGINT, 8.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0))
"""How to end a process, and how long to wait before the next means. A control step with rendering takes up to 1 s on a
loaded machine, closing a simulation about as long."""

DOMAINS = range(1, 102)
"""ROS_DOMAIN_ID that work everywhere (above 101 their ports are Linux's ephemeral ones); 0 is everybody's default."""

LOG_TAIL_LINES = 12


class NodeDiedError(EpisodeError):
    """A process of the graph ended on its own."""


@dataclass
class GraphProcess:
    spec: NodeSpec
    popen: subprocess.Popen[bytes]
    log: Path | None


def run_eval(config: EvalConfig, out: Path, more: Sequence[NodeSpec] = ()) -> int:
    """Run the pending episodes of an evaluation over ROS; eval_node records them in `out`.

    Args:
        config: the evaluation.
        out: of the results.
        more: further processes of the graph.

    Returns:
        The exit status of eval_node: 0, or that of `rsd eval` for what it has printed.

    Raises:
        As `run_graph`.
    """
    specs = nodes_of(config, str(out), report=False)
    return run_graph([*specs, *more], config=shared_path(str(EVAL_CONFIG)), logs=out / "logs")


def run_graph(specs: Sequence[NodeSpec], *, config: Path | None, logs: Path) -> int:
    """Run a graph until the process that conducts it ends; returns that one's exit status.

    Args:
        specs: the processes; exactly one of them conducts.
        config: ROS parameter file for all nodes.
        logs: directory for what the nodes print; the conducting one prints to the terminal.

    Raises:
        NodeDiedError: another process ended; says which, how, and what it printed last.
        SetupError: no ROS domain is free.
        KeyboardInterrupt: SIGINT or SIGTERM came. By then no process is left.
    """
    logs.mkdir(parents=True, exist_ok=True)
    interrupts.check()
    processes: list[GraphProcess] = []
    with ros_domain() as domain, _signals() as received:
        try:
            for spec in specs:
                if not received:
                    processes.append(start_process(spec, config=config, logs=logs, domain=domain))
            status = _watch(processes, received)
        finally:
            end_processes(processes)
    if received:
        raise KeyboardInterrupt
    return status


def _watch(processes: Sequence[GraphProcess], received: Sequence[int]) -> int:
    """Wait for the conducting process; returns its exit status (or -1 when a signal came)."""
    while not received:
        for process in processes:
            status = process.popen.poll()
            if status is None:
                continue
            if process.spec.conducts and status >= 0:
                return status
            raise NodeDiedError(f"{process.spec.name} ended unexpectedly ({_how(status)}){_tail(process.log)}")
        time.sleep(POLL_S)
    return -1


def start_process(spec: NodeSpec, *, config: Path | None, logs: Path, domain: int) -> GraphProcess:
    """Start one process of a graph, which ends when this process does."""
    command = [sys.executable, "-m", spec.module, *ros_arguments(spec, config)]
    environment = graph_environment(domain) | {SUPERVISOR_PID: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    if spec.conducts or spec.speaks:
        command += ["--log-level", "warn"]
        return GraphProcess(spec, subprocess.Popen(command, env=environment, start_new_session=True), None)
    log = logs / f"{spec.name}.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    return GraphProcess(spec, popen, log)


def ros_arguments(spec: NodeSpec, config: Path | None) -> list[str]:
    """What a node's process is called with; `config` is a ROS parameter file."""
    arguments = ["--ros-args", "-r", f"__node:={spec.name}"]
    if config is not None:
        arguments += ["--params-file", str(config)]
    for name, value in spec.parameters.items():
        arguments += ["-p", f"{name}:={_yaml(value)}"]
    return arguments


def graph_environment(domain: int) -> dict[str, str]:
    """Environment of a process in a graph that is this machine's and this command's own.

    Its nodes find each other without what the shell says for the user's robots: a discovery server that does not run,
    peers, or discovery switched off would keep them apart. Only a wider range is respected: it lets others watch.
    """
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN_DISCOVERY}
    if environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE") not in ("SUBNET", "SYSTEM_DEFAULT"):
        environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    return environment | {"ROS_DOMAIN_ID": str(domain)}


def _yaml(value: ParameterValue) -> str:
    """A parameter value such that ROS reads the type that was meant: JSON is YAML, and quotes texts such as "0"."""
    return json.dumps(value if isinstance(value, (bool, int, float, str)) else list(value))


def end_processes(processes: Sequence[GraphProcess]) -> None:
    """End them all, gently first; returns when none is left."""
    for how, seconds in GRACE_S:
        alive = [process for process in processes if process.popen.poll() is None]
        for process in alive:
            process.popen.send_signal(how)
        deadline = time.monotonic() + seconds
        while any(process.popen.poll() is None for process in alive) and time.monotonic() < deadline:
            time.sleep(POLL_S)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, instead of an exception between any two instructions."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ros_domain() -> Iterator[int]:
    """A ROS domain that no other rsd on this machine uses: the user's ROS_DOMAIN_ID, or a free one.

    A domain is taken by binding an abstract socket: the kernel frees it with the process, and other users see it too.
    """
    chosen = os.environ.get("ROS_DOMAIN_ID")
    if chosen:
        if not chosen.isdigit() or int(chosen) > 232:
            raise SetupError(f"ROS_DOMAIN_ID: expected a number 0..232, got '{chosen}'")
        holder = _take(int(chosen))
        if holder is None:
            raise SetupError(
                f"ROS_DOMAIN_ID {chosen} is in use by another rsd on this machine: the two would command each other's "
                "robot. Unset ROS_DOMAIN_ID (a free one is chosen then), or set another"
            )
        with holder:
            yield int(chosen)
        return
    for domain in random.sample(DOMAINS, len(DOMAINS)):
        holder = _take(domain)
        if holder is not None:
            with holder:
                yield domain
            return
    raise SetupError(f"expected a free ROS domain among {DOMAINS[0]}..{DOMAINS[-1]}, all are in use by other rsd runs")


def _take(domain: int) -> socket.socket | None:
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        holder.bind(f"\0rsd_policy.ros_domain.{domain}")
    except OSError:
        holder.close()
        return None
    return holder


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _tail(log: Path | None) -> str:
    if log is None:
        return ""
    lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    text = "".join(f"\n  | {line}" for line in lines)
    return f"; it printed last, to {log}:{text}" if lines else f"; it printed nothing to {log}"
