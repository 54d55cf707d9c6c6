"""Shows the observations of a bag to a policy and compares its answers; the same loop in process and over ROS."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rsd_policy.bags.answers import Answer, Replayed
from rsd_policy.bags.compare import difference
from rsd_policy.bags.playback import Playback, Shown
from rsd_policy.bags.results import read_answers
from rsd_policy.errors import ArgumentError
from rsd_policy.observation import ActionChunk
from rsd_policy.robots.state import unlike_training
from rsd_policy.settings import EXECUTE_STEPS, MODES, Mode

RECORDED, COMMANDS = "recorded", "commands"
WORST = 10
"""Moments that are kept with their pictures."""


class Answerer(Protocol):
    """Answers observations: an engine in this process, or a node."""

    def answer(self, shown: Shown, upcoming: Callable[[], Shown | None] = lambda: None) -> ActionChunk:
        """The final chunk.

        Args:
            shown: the observation.
            upcoming: reads the next one, which a node can be sent while it infers.
        """


class EngineAnswerer:
    """RSDInferenceEngine on the observations, reset where an episode begins."""

    def __init__(self, policy: Any, mode: Mode, device: str, alpha: float | None = None) -> None:
        from rsd_policy import RSDInferenceEngine  # imports torch

        steps = min(int(EXECUTE_STEPS.default), policy.horizon)
        self._engine = RSDInferenceEngine(policy, mode=mode, device=device, execute_steps=steps, alpha=alpha)
        self._context: tuple[int, int] | None = None

    def answer(self, shown: Shown, upcoming: Callable[[], Shown | None] = lambda: None) -> ActionChunk:
        if shown.context != self._context:
            self._engine.reset()
            self._context = shown.context
        if shown.executed is not None:
            self._engine.executed(shown.executed)
        return self._engine.infer(shown.observation)


Expected = Callable[[Shown], "NDArray[np.float32] | None"]


def expectation(against: str | None, playback: Playback, in_mode: Callable[[Mode], Answerer]) -> tuple[str, Expected]:
    """What answers are compared with, and how it is found.

    Args:
        against: "recorded", "commands", a mode, the directory (or replay.json) of another replay, or None: what is
            in the bag.
        playback: of the bag.
        in_mode: makes an answerer of the same policy in another mode.

    Raises:
        ArgumentError: it is none of these, or not in the bag.
    """
    recorded = playback.recorded
    if against is None:
        against = RECORDED if recorded.chunks else COMMANDS if recorded.commands else ""
    if against == "":
        return "", lambda shown: None
    if against == RECORDED:
        if not recorded.chunks:
            raise ArgumentError(f"{playback.bag.path}: holds no chunks on '{playback.contract.action.chunks}'")
        return RECORDED, lambda shown: recorded.chunks[shown.stamp].actions if shown.stamp in recorded.chunks else None
    if against == COMMANDS:
        return COMMANDS, _commands(playback)
    if against in MODES:
        other = in_mode(against)
        return against, lambda shown: other.answer(shown).actions
    path = Path(against).expanduser()
    if path.exists():
        answers = read_answers(path)
        return str(path), lambda shown: answers.get(shown.stamp)
    raise ArgumentError(
        f"--against: expected {RECORDED}, {COMMANDS}, {', '.join(MODES)} or the directory of a replay, got '{against}'"
    )


def _commands(playback: Playback) -> Expected:
    commands = playback.recorded.commands
    if not commands:
        raise ArgumentError(f"{playback.bag.path}: holds no commands on '{playback.contract.action.commands}'")
    stamps = np.asarray([stamp for stamp, _ in commands])
    values = np.asarray([value for _, value in commands])

    def following(shown: Shown) -> NDArray[np.float32] | None:
        """The commands from the observation on: one per control step, as a chunk has them."""
        start = int(np.searchsorted(stamps, shown.stamp))
        after: NDArray[np.float32] = values[start : start + int(EXECUTE_STEPS.default)]
        return after if len(after) else None

    return following


def replay(
    playback: Playback,
    answerer: Answerer,
    against: str,
    expected: Expected,
    *,
    statistics: tuple[Any, Any] | None = None,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> Replayed:
    """Answer every observation of the bag.

    Args:
        playback: of the bag.
        answerer: the policy.
        against, expected: of `expectation`.
        statistics: mean and standard deviation [8] of the states of the training; None: not checked.
        on_answer: called with each answer.
    """
    done = Replayed(against)
    start = time.monotonic()
    worst: list[tuple[float, int, dict[str, NDArray[np.uint8]]]] = []
    for shown, upcoming in _with_next(playback.observations()):
        chunk = answerer.answer(shown, upcoming)
        wanted = expected(shown)
        apart = None if wanted is None else difference(chunk.actions, wanted, playback.contract.action)
        answer = Answer(shown.stamp, shown.task.episode, shown.task.instruction, chunk, wanted, apart)
        done.answers.append(answer)
        if statistics is not None:
            for sentence in unlike_training(shown.observation.proprio, *statistics):
                field_name = sentence.split(" = ")[0]
                done.unlike[field_name] = done.unlike.get(field_name, 0) + 1
        _keep_worst(worst, answer, shown)
        on_answer(answer)
    done.wall_s = time.monotonic() - start
    done.pictures = {-stamp: images for _, stamp, images in sorted(worst, key=lambda entry: entry[:2], reverse=True)}
    return done


def _with_next(moments: Iterator[Shown]) -> Iterator[tuple[Shown, Callable[[], Shown | None]]]:
    """Each moment, with a function that reads the one after it when somebody wants it early."""
    ahead: list[Shown | None] = []

    def upcoming() -> Shown | None:
        if not ahead:
            ahead.append(next(moments, None))
        return ahead[0]

    shown = upcoming()
    while shown is not None:
        ahead.clear()
        yield shown, upcoming
        shown = upcoming()


def _keep_worst(worst: list[tuple[float, int, dict[str, NDArray[np.uint8]]]], answer: Answer, shown: Shown) -> None:
    size = answer.difference.size if answer.difference is not None else 0.0
    if len(worst) < WORST or size > worst[0][0]:
        images = {name: np.array(image) for name, image in shown.observation.images.items()}
        heapq.heappush(worst, (size, -answer.stamp, images))  # of equals the earliest stays
        if len(worst) > WORST:
            heapq.heappop(worst)


def make_policy(run: Mapping[str, Any], device: str) -> Any:
    """Load the policy of rsd_policy.bags.session.recorded_run."""
    from rsd_policy import load_policy  # imports torch

    return load_policy(run["policy"], device, norm_key=run["norm_key"], base=run["base"])
