"""Says why observations do not become complete: which inputs came, with which stamps, and what to do about it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from rsd_policy.robots.contract import Alignment

KEPT = 32
"""Stamps kept of each input."""


class Arrivals:
    """The stamps that came since the last complete observation.

    Args:
        topics: input -> topic as the node hears it, the reference camera first.
        alignment: how stamps are to find each other.
    """

    def __init__(self, topics: Mapping[str, str], alignment: Alignment) -> None:
        self._topics = dict(topics)
        self._alignment = alignment
        self._stamps: dict[str, deque[int]] = {name: deque(maxlen=KEPT) for name in topics}
        self._last_complete: int | None = None

    def add(self, name: str, stamp: int) -> None:
        """Note the stamp (ns) of a message."""
        self._stamps[name].append(stamp)

    def complete(self, stamp: int) -> None:
        """An observation became complete: what came before explains nothing any more."""
        self._last_complete = stamp
        self.clear()

    def clear(self) -> None:
        for stamps in self._stamps.values():
            stamps.clear()

    def explain(self, asked: int | None = None) -> str:
        """One line: what was expected, what came, what to do.

        Args:
            asked: stamp of the observation that is waited for, ns; None: the next one.
        """
        after = "" if self._last_complete is None else f" after the observation of {self._last_complete * 1e-9:.3f} s"
        if asked is not None:
            after = f" for the observation of {asked * 1e-9:.3f} s"
        if not any(self._stamps.values()):
            return f"{', '.join(self._topics.values())} did not come{after}; check that they are published"
        wanted = self._compared_with() if asked is None else asked
        parts = [self._of_input(name, wanted) for name in self._topics]
        return f"expected {self._expected()}{after}, but {', '.join(filter(None, parts))}; {self._advice()}"

    def _expected(self) -> str:
        if self._alignment.how == "exact":
            return "inputs with equal stamps"
        return f"inputs within {self._alignment.tolerance_s * 1e3:g} ms of the camera '{self._alignment.reference}'"

    def _compared_with(self) -> int:
        """The last stamp but one of the first input that came: the others have had time to come near it."""
        stamps = next(stamps for stamps in self._stamps.values() if stamps)
        return stamps[-2] if len(stamps) > 1 else stamps[-1]

    def _of_input(self, name: str, wanted: int) -> str:
        topic, stamps = self._topics[name], self._stamps[name]
        if not stamps:
            return f"{topic} did not come"
        if stamps[-1] == 0:
            return f"{topic} came with stamp 0"
        apart = min((stamp - wanted for stamp in stamps), key=abs)
        if apart == 0:
            return ""
        return f"{topic} came {_duration(abs(apart))} {'later' if apart > 0 else 'earlier'}"

    def _advice(self) -> str:
        if any(stamps and stamps[-1] == 0 for stamps in self._stamps.values()):
            return "a driver that does not fill header.stamp needs 'alignment: {how: nearest, stamps: arrival}'"
        if not all(self._stamps.values()):
            return "check that the topic is published"
        if self._alignment.how == "exact":
            return "stamp the inputs alike, or write 'alignment: {how: nearest, ...}' in the robot's contract"
        return "do the drivers use the same clock? otherwise raise 'tolerance' in the robot's contract"


def _duration(nanoseconds: int) -> str:
    return f"{nanoseconds * 1e-6:.3f} ms" if nanoseconds < 1_000_000_000 else f"{nanoseconds * 1e-9:.3f} s"
