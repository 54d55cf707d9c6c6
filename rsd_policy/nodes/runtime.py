"""What every node process does alike: start, spin in one thread, end cleanly, die with its supervisor."""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from rsd_policy.graph.supervisor import SUPERVISOR_PID

_PR_SET_PDEATHSIG = 1

COMMANDS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
"""Commands, chunks and episode states: none may be lost; the depth covers a recorder that was not scheduled a while."""

LOCKSTEP_INPUT = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
"""Observations in lockstep, where the simulation waits for the answer to each of them."""

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""The latest value is handed to late joiners."""


def die_with_supervisor() -> None:
    """Have the kernel end this process when the `rsd` that started it ends in any way, SIGKILL included.

    Raises:
        SystemExit: the supervisor is already gone.
    """
    supervisor = os.environ.get(SUPERVISOR_PID)
    if supervisor is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(supervisor):
        raise SystemExit("the process that started this node has ended")


def show_help(module: str, args: Sequence[str] | None) -> bool:
    """Answer --help for the node that `module` describes: rclpy would start it. Returns whether that was asked."""
    given = sys.argv[1:] if args is None else args
    if not {"-h", "--help"} & set(given):
        return False
    print(f"usage: {Path(sys.argv[0]).stem} [--ros-args -r OLD:=NEW ... --params-file FILE -p NAME:=VALUE ...]\n")
    print(inspect.cleandoc(sys.modules[module].__doc__ or ""))
    print("\nWhile it runs, `ros2 param describe` tells the range and unit of each of its parameters.")
    return True


def run_node(make: Callable[[], Node], args: Sequence[str] | None = None) -> int:
    """Run a node until SIGINT, SIGTERM or a shutdown of the context; returns the exit status.

    An exception in a callback ends the process with a traceback: a node that is half alive would be worse. A node with
    threads of its own has a method `close` to end them, and an attribute `fatal_error` with what one of them died of.
    """
    if show_help(make.__module__, args):
        return 0
    die_with_supervisor()
    rclpy.init(args=args)
    node: Node | None = None
    try:
        node = make()
        # MultiThreadedExecutor was measured at p99 52 ms instead of 4; EventsExecutor does not work in the wheels.
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        # an ordinary end, unless one of the node's threads brought it about
        _raise_fatal(node)
        return 0
    finally:
        close = getattr(node, "close", None)
        if close is not None:
            close()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    # spin returns like this when the context was shut down while a callback ran
    _raise_fatal(node)
    return 0


def _raise_fatal(node: Node | None) -> None:
    fatal: BaseException | None = getattr(node, "fatal_error", None)
    if fatal is not None:
        raise fatal from None
