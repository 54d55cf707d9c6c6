"""Wall-clock time per stage, with the device synchronised at every boundary."""

from __future__ import annotations

import time

import torch


class StageClock:
    """Stopwatch for one inference.

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
