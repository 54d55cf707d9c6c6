"""Finds the messages of one moment: equal stamps, or the nearest to a reference camera's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from rsd_policy.robots.contract import Alignment

HISTORY = 16
"""Moments kept. Inputs of one robot arrive within a few control periods of each other."""

JUMP_BACK_NS = 100_000_000
"""A stamp that is older than the newest one of the same input by more than this says that time itself went back: the
messages of one topic come in order, those of two publishers of it (arm and gripper on joint_states) nearly."""

MARGIN_NS = 500_000_000
"""How much longer than tolerance and wait messages are kept, and how late a topic may be."""


@dataclass(frozen=True)
class Moment:
    """The messages of one observation.

    Attributes:
        stamp: of the reference, ns.
        messages: input -> message.
        neighbours: everything that decided which message is nearest, in the order of arrival.
    """

    stamp: int
    messages: dict[str, Any]
    neighbours: tuple[Any, ...] = ()


class Aligner(Protocol):
    """See `Exact` and `Nearest`."""

    inputs: tuple[str, ...]

    def add(self, name: str, stamp: int, message: Any, now: int) -> list[Moment]:
        """Keep a message; returns the moments that it completed.

        Args:
            name: one of the inputs.
            stamp: ns.
            message: the message.
            now: when it arrived, ns; only differences of it are looked at.
        """

    def moment(self, stamp: int, now: int | None = None) -> Moment | None:
        """The complete moment of a stamp, or None."""

    def restart(self, name: str, stamp: int) -> bool:
        """Forget everything, if a stamp of an input says that time went back (a bag that loops, a new simulator)."""

    def clear(self) -> None:
        """Forget everything."""


class Exact:
    """Equal stamps."""

    def __init__(self, inputs: Iterable[str]) -> None:
        self.inputs = tuple(inputs)
        self._moments: dict[int, dict[str, Any]] = {}
        self._latest: dict[str, int] = {}

    def add(self, name: str, stamp: int, message: Any, now: int = 0) -> list[Moment]:
        self._latest[name] = max(stamp, self._latest.get(name, stamp))
        moment = self._moments.setdefault(stamp, {})
        known = name in moment
        moment[name] = message
        while len(self._moments) > HISTORY:
            del self._moments[min(self._moments)]
        if known or len(moment) < len(self.inputs):
            return []
        return [Moment(stamp, moment, tuple(moment.values()))]

    def moment(self, stamp: int, now: int | None = None) -> Moment | None:
        found = self._moments.get(stamp, {})
        return Moment(stamp, found, tuple(found.values())) if len(found) == len(self.inputs) else None

    def restart(self, name: str, stamp: int) -> bool:
        # without this the moments kept would all be newer than whatever comes, and none would become complete again
        back = stamp < self._latest.get(name, stamp) - JUMP_BACK_NS
        if back:
            self.clear()
        return back

    def clear(self) -> None:
        self._moments.clear()
        self._latest.clear()


@dataclass
class _Pending:
    """A reference that waits for its neighbours: stamp and arrival, ns."""

    stamp: int
    arrived: int
    message: Any


@dataclass
class _Track:
    """The messages of one input, by stamp; a history of its own, so that a fast topic does not push a slow one out."""

    entries: deque[tuple[int, int, Any]] = field(default_factory=deque)

    def add(self, stamp: int, order: int, message: Any) -> None:
        position = len(self.entries)
        while position and self.entries[position - 1][0] > stamp:
            position -= 1
        self.entries.insert(position, (stamp, order, message))

    def forget_before(self, stamp: int) -> None:
        # the last one before the limit stays: it may be the nearest to what comes next
        while len(self.entries) > 1 and self.entries[1][0] < stamp:
            self.entries.popleft()

    def around(self, stamp: int) -> list[tuple[int, int, Any]]:
        """The last message before a stamp and the first one at or after it, as far as there are."""
        before = after = None
        for entry in self.entries:
            if entry[0] < stamp:
                before = entry
            else:
                after = entry
                break
        return [entry for entry in (before, after) if entry is not None]


class Nearest:
    """To each image of the reference camera the nearest message of every other input, by stamp, within a tolerance.

    A moment is decided when each input has a message at or after the reference's stamp (nothing nearer can follow), or
    `wait_s` after the reference came. The result does not depend on the order in which topics arrive.
    """

    def __init__(self, inputs: Iterable[str], alignment: Alignment) -> None:
        self.inputs = tuple(inputs)
        self._reference = alignment.reference
        self._tolerance = round(alignment.tolerance_s * 1e9)
        self._wait = round(alignment.wait_s * 1e9)
        self.clear()

    def clear(self) -> None:
        self._tracks = {name: _Track() for name in self.inputs if name != self._reference}
        self._pending: deque[_Pending] = deque(maxlen=HISTORY)
        self._decided: deque[Moment] = deque(maxlen=HISTORY)
        self._newest = 0
        self._order = 0
        self._latest: dict[str, int] = {}

    def add(self, name: str, stamp: int, message: Any, now: int) -> list[Moment]:
        self._order += 1
        self._latest[name] = max(stamp, self._latest.get(name, stamp))
        if name == self._reference:
            known = any(p.stamp == stamp for p in self._pending) or any(m.stamp == stamp for m in self._decided)
            if not known:
                self._pending.append(_Pending(stamp, now, message))
            self._newest = max(self._newest, stamp)
        else:
            self._tracks[name].add(stamp, self._order, message)
        moments = self._decide(now)
        oldest = self._pending[0].stamp if self._pending else self._newest
        for track in self._tracks.values():
            track.forget_before(oldest - self._tolerance - self._wait - MARGIN_NS)
        return moments

    def _decide(self, now: int) -> list[Moment]:
        found = []
        for pending in list(self._pending):
            around = {name: track.around(pending.stamp) for name, track in self._tracks.items()}
            final = all(entries and entries[-1][0] >= pending.stamp for entries in around.values())
            if not final and now - pending.arrived < self._wait:
                continue
            self._pending.remove(pending)
            moment = self._moment(pending, around)
            if moment is not None:
                self._decided.append(moment)
                found.append(moment)
        return found

    def _moment(self, pending: _Pending, around: dict[str, list[tuple[int, int, Any]]]) -> Moment | None:
        messages = {self._reference: pending.message}
        neighbours: list[tuple[int, Any]] = [(0, pending.message)]
        missing = False
        for name, entries in around.items():
            neighbours += [(order, message) for _, order, message in entries]
            nearest = min(entries, key=lambda entry: abs(entry[0] - pending.stamp), default=None)
            if nearest is None or abs(nearest[0] - pending.stamp) > self._tolerance:
                missing = True
            else:
                messages[name] = nearest[2]
        if missing:
            return None
        ordered = {name: messages[name] for name in self.inputs}
        return Moment(pending.stamp, ordered, tuple(message for _, message in sorted(neighbours, key=lambda n: n[0])))

    def moment(self, stamp: int, now: int | None = None) -> Moment | None:
        if now is not None:
            self._decide(now)
        return next((moment for moment in self._decided if moment.stamp == stamp), None)

    def restart(self, name: str, stamp: int) -> bool:
        back = stamp < self._latest.get(name, stamp) - JUMP_BACK_NS
        if back:
            self.clear()
        return back


def make_aligner(inputs: Iterable[str], alignment: Alignment) -> Aligner:
    """The aligner that a contract asks for."""
    return Exact(inputs) if alignment.how == "exact" else Nearest(inputs, alignment)
