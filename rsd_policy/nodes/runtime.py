"""What every node process does alike: start, spin in one thread, end cleanly, die with its supervisor."""

from __future__ import annotations

import ctypes
import inspect
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.guard_condition import GuardCondition
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from rsd_policy.errors import ArgumentError, RSDError
from rsd_policy.exit_status import DONE, INTERRUPTED
from rsd_policy.faults import debugging, report
from rsd_policy.graph.supervisor import SUPERVISOR_PID
from rsd_policy.nodes.parameters import make_node

_PR_SET_PDEATHSIG = 1

N = TypeVar("N", bound=Node)

STOP_TIMEOUT_S = 1.0
"""After a signal a node has so long to say its last word; then its context ends whatever it is doing."""

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


class _Signals:
    """Tells at once that SIGINT or SIGTERM has come, in a thread of its own.

    rclpy's own handlers end the context before anybody can say anything; a safety command must still go out. Python's
    handlers run in the main thread, which waits inside the middleware. So the byte is awaited that the interpreter
    writes when a signal arrives, in whichever thread.
    """

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self._on_signal = on_signal
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        self._thread = threading.Thread(target=self._wait, name="signals", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        while os.read(self._read, 1):
            self._on_signal()

    def close(self) -> None:
        """Give signals back to whoever had them."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)


def start_ros(args: Sequence[str] | None, **options: Any) -> None:
    """`rclpy.init`.

    Raises:
        ArgumentError: rcl cannot read what follows --ros-args: an unknown option, a rule, a file of parameters.
    """
    try:
        rclpy.init(args=args, **options)
    except RuntimeError as error:
        said = re.sub(r", at [^ ,]+:\d+", "", " ".join(str(error).split()))  # without places in rcl's sources
        raise ArgumentError(f"ROS arguments: {said}") from error


def run_node(make: Callable[[], Node], args: Sequence[str] | None = None) -> int:
    """Run a node until SIGINT, SIGTERM or a shutdown of the context; returns the exit status.

    An exception in a callback ends the process with a traceback: a node that is half alive would be worse. A node with
    threads of its own has a method `close` to end them, and an attribute `fatal_error` with what one of them died of. A
    node that must say something before it ends has a method `stop`: a signal calls it in the executor's thread while
    messages still go out, an exception in a callback as well.
    """
    if show_help(make.__module__, args):
        return 0
    die_with_supervisor()
    try:
        start_ros(args, signal_handler_options=SignalHandlerOptions.NO)
    except ArgumentError as error:
        return report(Path(sys.argv[0]).stem, error, debug=debugging())
    node: Node | None = None
    ending: GuardCondition | None = None

    def stop() -> None:
        say = getattr(node, "stop", None)
        try:
            if say is not None and rclpy.ok():
                say()
        finally:
            rclpy.try_shutdown()

    def on_signal() -> None:
        if ending is not None and rclpy.ok():
            ending.trigger()
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while rclpy.ok() and time.monotonic() < deadline:
                time.sleep(0.005)
        rclpy.try_shutdown()

    signals = _Signals(on_signal)
    try:
        node = make_node(make, args)
        ending = node.create_guard_condition(stop)
        # MultiThreadedExecutor was measured at p99 52 ms instead of 4; EventsExecutor does not work in the wheels.
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            executor.spin()
        except ExternalShutdownException:
            raise
        except Exception:
            stop()
            raise
    except (KeyboardInterrupt, ExternalShutdownException):
        # an ordinary end, unless one of the node's threads brought it about
        _raise_fatal(node)
        return 0
    except RSDError as error:
        return report(Path(sys.argv[0]).stem, error, debug=debugging())
    finally:
        signals.close()
        close = getattr(node, "close", None)
        if close is not None:
            close()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    # spin returns like this when the context was shut down while a callback ran
    _raise_fatal(node)
    return 0


def conduct_with(make: type[N], work: Callable[[N], int], kept: str, args: Sequence[str] | None) -> int:
    """Run a node that does one piece of work and spins itself meanwhile; returns the exit status.

    Args:
        make: the node's class.
        work: what it does; returns the exit status.
        kept: what somebody who interrupts it is told of what was done.
    """
    if show_help(make.__module__, args):
        return DONE
    die_with_supervisor()
    name = Path(sys.argv[0]).stem
    node: N | None = None
    try:
        start_ros(args)
        node = make_node(make, args)
        return work(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        print(f"{name}: interrupted; {kept}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return report(name, error, debug=debugging())
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


def _raise_fatal(node: Node | None) -> None:
    fatal: BaseException | None = getattr(node, "fatal_error", None)
    if fatal is not None:
        raise fatal from None
