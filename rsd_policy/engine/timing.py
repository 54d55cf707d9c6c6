"""Time per stage: wall-clock with the device synchronised at every boundary, or the device's own events."""

from __future__ import annotations

import time

import torch


class StageClock:
    """Stopwatch for one inference.

    Args:
        device: synchronised at every mark; a CPU for stages that are timed by the device itself (`measured`).

    Kernels run asynchronously on a GPU: reading a host clock without waiting for the device assigns time to the wrong
    stage. Every mark therefore synchronises first.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._last = self._now()
        self.stage_ms: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """End the running stage under this name."""
        now = self._now()
        self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + (now - self._last) * 1e3
        self._last = now

    def measured(self, device_ms: dict[str, float]) -> None:
        """End stages of which the device itself has taken the time; what else has passed is the stage "host"."""
        now = self._now()
        host = (now - self._last) * 1e3 - sum(device_ms.values())
        for stage, milliseconds in (device_ms | {"host": max(0.0, host)}).items():
            self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + milliseconds
        self._last = now

    def resume(self) -> None:
        """Do not count the time since the last mark (the caller had the control)."""
        now = self._now()
        self._start += now - self._last
        self._last = now

    @property
    def elapsed_ms(self) -> float:
        """Time from construction to the last mark, ms."""
        return (self._last - self._start) * 1e3

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
