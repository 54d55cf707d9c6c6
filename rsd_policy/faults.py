"""The one place where whatever ends a command or a node becomes one message and an exit status."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import traceback
from pathlib import Path

from rsd_policy.errors import ArgumentError, InferenceError, RSDError, SetupError
from rsd_policy.exit_status import exit_status

NO_ROOM = "make room there, or choose another place (--out, --json)"

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_ARGUMENT = {
    errno.ENOENT: "expected it to exist",
    errno.EACCES: "expected to be allowed to use it",
    errno.EPERM: "expected to be allowed to use it",
    errno.EROFS: "expected a place that can be written to",
    errno.ENAMETOOLONG: "expected a shorter name",
    errno.ENOTDIR: "expected a directory on the way to it",
    errno.EISDIR: "expected a file",
    errno.EEXIST: "expected that it does not exist yet",
}
"""Faults of a path that the caller can name differently."""

_EXTRAS = {
    "sim": ("bddl", "h5py", "libero", "mujoco", "robosuite"),
    "eval": ("imageio_ffmpeg", "matplotlib", "rich", "scipy"),
    "bags": ("mcap", "rosbags"),
    "lerobot": ("av", "pyarrow"),
    "openvla": ("huggingface_hub", "tokenizers", "transformers"),
}
"""Extra of the package (setup.py) -> modules that it brings, in the order of asking for them."""

_ROS = ("ament_index_python", "launch", "launch_ros", "rclpy", "rsd_msgs")

_SQLITE_ARGUMENT = ("readonly database", "unable to open database")


def debugging() -> bool:
    """Whether RSD_DEBUG asks for the traceback of an error."""
    return bool(os.environ.get("RSD_DEBUG"))


def report(who: str, error: Exception, *, debug: bool) -> int:
    """Print one message for an error that ends a command, and the traceback when `debug` is set.

    Returns:
        The exit status.

    Raises:
        The error itself, when it is neither ours nor one that the machine or its libraries cause.
    """
    known = understood(error)
    if known is None:
        raise error
    if debug:
        traceback.print_exception(error)
    print(f"{who}: {known}", file=sys.stderr)
    return exit_status(known)


def understood(error: Exception) -> RSDError | None:
    """The error as one of ours, which says what to do; None for a kind that only a mistake in a program raises.

    Disks, permissions, memory, drivers and foreign files speak through OSError, sqlite3.Error, RuntimeError, TypeError
    and MemoryError.
    """
    if isinstance(error, RSDError):
        return error
    if isinstance(error, ImportError):
        return SetupError(f"{error}; {bringer(error.name or '')}")
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return InferenceError(f"out of memory: {_first_line(error)}; use a smaller batch or fewer workers")
    if isinstance(error, OSError):
        return _of_files(error)
    if isinstance(error, sqlite3.Error):
        text = str(error)
        if "full" in text:
            return SetupError(f"no room on the disk: {text}; {NO_ROOM}")
        if any(part in text for part in _SQLITE_ARGUMENT):
            return ArgumentError(f"{text}: expected a directory that can be written to; choose another --out")
        return SetupError(f"the database of the results: {text}; choose another --out, or remove what is damaged")
    if isinstance(error, (RuntimeError, TypeError)):
        return InferenceError(
            f"unexpected {type(error).__name__}: {_first_line(error)} ({_place(error)}); "
            "--debug (or RSD_DEBUG=1) shows where it came from"
        )
    return None


def bringer(module: str) -> str:
    """What to do to have a module that could not be imported."""
    name = module.partition(".")[0]
    everything = "`./rsd setup` in the sources of rsd_policy brings everything"
    if name in _ROS or name.endswith("_msgs"):
        return f"it comes with ROS 2 and ros2_ws: {everything}"
    for extra, modules in _EXTRAS.items():
        if name in modules:
            return (
                f"the extra [{extra}] brings it: pip install '.[{extra}]' in the sources of rsd_policy; or {everything}"
            )
    return everything


def _of_files(error: OSError) -> RSDError:
    path = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    said = error.strerror or str(error)
    if error.errno in _DISK_FULL:
        return SetupError(f"{path}{said}; {NO_ROOM}")
    if path and error.errno in _ARGUMENT:
        return ArgumentError(f"{path}{_ARGUMENT[error.errno]}, got '{said}'")
    return SetupError(f"{path}{said}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "no traceback"
