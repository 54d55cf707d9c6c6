"""Which instruction policy_node follows."""

from __future__ import annotations

from dataclasses import dataclass

from rsd_msgs.msg import EpisodeStatus


def same(one: str, other: str) -> bool:
    """Whether two instructions are the same words."""
    return one.casefold().split() == other.casefold().split()


@dataclass
class Instructions:
    """A goal comes before the episode that runs, an episode before the topic.

    A goal is what somebody wants now, an episode carries its task, and the topic is for robots without episodes. When a
    goal has ended, however it did, nothing older than its end is followed: the robot waits for a new goal, a new
    message or a new episode.
    """

    topic: str | None = None
    _dismissed: int | None = None

    def choose(self, goal: str | None, running: EpisodeStatus | None) -> tuple[str, str] | None:
        """The instruction to follow and where it is from ("goal", "episode" or "topic"), or None.

        Args:
            goal: instruction of the goal in execution.
            running: state of the episode that runs.
        """
        if goal is not None:
            return goal, "goal"
        if running is not None and running.instruction and running.episode != self._dismissed:
            return running.instruction, "episode"
        return (self.topic, "topic") if self.topic else None

    def dismiss(self, running: EpisodeStatus | None) -> None:
        """Forget what was to be followed until now."""
        self.topic = None
        if running is not None:
            self._dismissed = running.episode
