"""The commands that were executed lately: what the robot did between two observations, not what was planned."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray
from rsd_msgs.msg import Action

from rsd_policy.nodes.messages import to_nanoseconds

KEPT = 64
"""Commands: an observation is answered long before so many ticks have passed."""


class ExecutedCommands:
    """The newest `KEPT` messages of the topic `action`."""

    def __init__(self) -> None:
        self._commands: deque[Action] = deque(maxlen=KEPT)

    def add(self, command: Action) -> None:
        """Take a command as it comes."""
        self._commands.append(command)

    def clear(self) -> None:
        """Forget them: time went back, or the node was activated anew."""
        self._commands.clear()

    def before(self, stamp: int, episode: int) -> NDArray[np.float32] | None:
        """The last command of an episode that is not younger than `stamp` (ns), [7]; None when there is none."""
        for command in reversed(self._commands):
            if command.episode == episode and to_nanoseconds(command.header.stamp) <= stamp:
                return np.asarray(command.values, dtype=np.float32)
        return None
