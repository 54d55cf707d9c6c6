"""Collects the messages of one moment: everything an observation needs, with equal stamps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

HISTORY = 16
"""Moments kept. Inputs of one robot arrive within a few control periods of each other."""

JUMP_BACK_NS = 1_000_000_000
"""A stamp that is older than the newest one by more than this did not come late: time itself went back."""


class ObservationSync:
    """Groups messages by stamp.

    Args:
        inputs: names of the inputs that make an observation.
    """

    def __init__(self, inputs: Iterable[str]) -> None:
        self.inputs = tuple(inputs)
        self._moments: dict[int, dict[str, Any]] = {}

    def add(self, name: str, stamp: int, message: Any) -> dict[str, Any] | None:
        """Keep a message; returns the moment (input -> message) when that made it complete.

        Args:
            name: one of the inputs.
            stamp: nanoseconds.
            message: the message.
        """
        moment = self._moments.setdefault(stamp, {})
        known = name in moment
        moment[name] = message
        while len(self._moments) > HISTORY:
            del self._moments[min(self._moments)]
        return moment if not known and len(moment) == len(self.inputs) else None

    def restart(self, stamp: int) -> bool:
        """Forget everything, if `stamp` (ns) says that time went back: a bag that loops, a restarted simulator.

        Without it the moments kept would all be newer than whatever comes, and nothing would become complete again.

        Returns:
            True when that was the case.
        """
        back = stamp < self.newest() - JUMP_BACK_NS
        if back:
            self.clear()
        return back

    def moment(self, stamp: int) -> dict[str, Any] | None:
        """The complete moment of `stamp`, or None."""
        moment = self._moments.get(stamp, {})
        return moment if len(moment) == len(self.inputs) else None

    def missing(self, stamp: int) -> list[str]:
        """Inputs that have not come for `stamp`."""
        moment = self._moments.get(stamp, {})
        return [name for name in self.inputs if name not in moment]

    def newest(self) -> int:
        """The newest stamp of which anything came; 0 before that."""
        return max(self._moments, default=0)

    def clear(self) -> None:
        """Forget everything."""
        self._moments.clear()
