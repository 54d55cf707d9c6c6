"""Which instruction is followed when several say something."""

from __future__ import annotations

from rsd_msgs.msg import EpisodeStatus

from rsd_policy.nodes.instructions import Instructions, same


def episode(number, instruction="close the drawer"):
    return EpisodeStatus(episode=number, instruction=instruction, state=EpisodeStatus.RUNNING)


def test_a_goal_comes_before_the_episode_and_the_episode_before_the_topic():
    instructions = Instructions()
    assert instructions.choose(None, None) is None
    instructions.topic = "wave"
    assert instructions.choose(None, None) == ("wave", "topic")
    assert instructions.choose(None, episode(1)) == ("close the drawer", "episode")
    assert instructions.choose("pick up the bowl", episode(1)) == ("pick up the bowl", "goal")


def test_after_a_goal_neither_the_topic_nor_its_episode_is_followed_until_something_new_comes():
    """A cancelled goal fell back to the latched topic or the running episode, and the arm moved on."""
    instructions = Instructions(topic="wave")
    instructions.dismiss(episode(1))
    assert instructions.choose(None, episode(1)) is None
    assert instructions.choose(None, None) is None
    assert instructions.choose(None, episode(2)) == ("close the drawer", "episode")
    instructions.topic = "wave again"
    assert instructions.choose(None, episode(1)) == ("wave again", "topic")


def test_instructions_are_compared_by_their_words():
    assert same("Pick up  the bowl", "pick up the bowl ")
    assert not same("pick up the bowl", "pick up the plate")
