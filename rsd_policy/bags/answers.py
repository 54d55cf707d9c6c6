"""What a replay gives: one answer per observation, beside what it was compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rsd_policy.bags.compare import Difference
from rsd_policy.observation import ActionChunk


@dataclass(frozen=True)
class Answer:
    """What a policy said to one observation, beside what it was compared with.

    Attributes:
        stamp: of the observation, ns.
        chunk: the answer.
        expected: [T, 7] of what it is compared with; None when there is nothing for this moment.
        difference: between them.
    """

    stamp: int
    episode: int
    instruction: str
    chunk: ActionChunk
    expected: NDArray[np.float32] | None
    difference: Difference | None


@dataclass
class Replayed:
    """A replay.

    Attributes:
        against: what was compared with: "recorded", "commands", a mode, a directory, or "" for nothing.
        answers: one per observation, in order.
        pictures: stamp -> camera -> uint8 [H, W, 3], of the moments that differ most.
        wall_s: how long it took, reading and transport included.
        unlike: what in the states the policy has not seen in training -> how often.
    """

    against: str
    answers: list[Answer] = field(default_factory=list)
    pictures: dict[int, dict[str, NDArray[np.uint8]]] = field(default_factory=dict)
    unlike: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def compared(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.difference is not None]

    @property
    def first(self) -> Answer | None:
        """The first answer with a value outside its tolerance."""
        return next((a for a in self.compared if a.difference is not None and a.difference.first is not None), None)

    @property
    def equal(self) -> bool:
        """Bit for bit."""
        return all(a.difference is not None and a.difference.equal for a in self.compared)
