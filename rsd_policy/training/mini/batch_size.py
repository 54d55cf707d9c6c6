"""How many frames a step of training may have on this machine."""

from __future__ import annotations

from pathlib import Path

FULL = 512
"""Frames per step where memory is no question."""

SMALLEST = 16

FIXED_GIB, GIB_PER_FRAME = 1.5, 0.0315
"""Memory of a training on a CPU: 2.5 GiB at 32 frames, 5.5 at 128, about 17.6 at 512 (12 layers,
measured 2026-12-01)."""

SHARE = 0.8
"""Of the memory that is free: demonstrations and validation need the rest."""

_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of a control group's memory, versions 2 and 1, as a container sees its own."""


def default_batch_size(device: str, processes: int = 1, free_gib: float | None = None) -> int:
    """Frames per step, of all processes together: `FULL`, or on a CPU the largest power of two that fits in memory.

    Args:
        device: type of the torch device; a GPU's memory is not looked at (one that is too small says so itself).
        processes: of the training on this machine; each needs `FIXED_GIB`.
        free_gib: memory that may be used, GiB; by default what this machine and this process's control group leave.
    """
    if device != "cpu":
        return FULL
    free_gib = free_memory_gib() if free_gib is None else free_gib
    frames = (SHARE * free_gib - processes * FIXED_GIB) / GIB_PER_FRAME
    size = SMALLEST * processes
    while 2 * size <= min(frames, FULL):
        size *= 2
    return size


def free_memory_gib() -> float:
    """Memory that this process may still take, GiB: what the machine has available, or its control group allows."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for limit, used in _CGROUP_FILES:
        try:
            allowed = int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):
            continue  # no such control group, or "max": no limit
        available = min(available, max(0, allowed))
    return available / 2**30
