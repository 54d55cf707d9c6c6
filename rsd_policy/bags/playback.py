"""Reads the observations of a bag, one after the other, and what was answered to them when it was recorded."""

from __future__ import annotations

import bisect
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.bags.reader import Bag, Record
from rsd_policy.bags.recording import PROVENANCE
from rsd_policy.errors import ArgumentError, BagError, ObservationError
from rsd_policy.observation import ACTION_DIM, Observation
from rsd_policy.robots.alignment import Moment, make_aligner
from rsd_policy.robots.composition import Composer
from rsd_policy.robots.contract import TWIST, ActionMeaning, Contract
from rsd_policy.robots.state import stamp_of

RECENT_NS = 1_000_000_000
"""A command that is older than this says nothing about what the arm does at an observation."""

RUNNING = 1
"""EpisodeStatus.RUNNING."""


@dataclass(frozen=True)
class RecordedChunk:
    """A final chunk in a bag: actions float32 [T, 7], and what came with it."""

    actions: NDArray[np.float32]
    mode: str
    inference_ms: float
    accepted: bool
    skipped: bool
    policy_sha256: str


@dataclass(frozen=True)
class Task:
    """What was to be done from a moment on: number of the episode (0: none), instruction."""

    episode: int
    instruction: str


@dataclass
class Recorded:
    """What a bag holds beside observations.

    Attributes:
        chunks: stamp of the observation (ns) -> final chunk.
        drafts: stamp of the observation (ns) -> actions [T, 7] of the provisional chunk.
        commands: (stamp in ns, values [7]), in time; NaN where a command says nothing.
        episodes: (stamp in ns, task), one per change, in time.
        instructions: (time of arrival in ns, text), in time.
        provenance: what the recorder wrote about itself; empty when another one recorded.
        damaged: topic -> messages that could not be decoded.
    """

    chunks: dict[int, RecordedChunk] = field(default_factory=dict)
    drafts: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    commands: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)
    episodes: list[tuple[int, Task]] = field(default_factory=list)
    instructions: list[tuple[int, str]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    damaged: Counter[str] = field(default_factory=Counter)

    def executed(self, stamp: int) -> NDArray[np.float32] | None:
        """The last command before an observation, [7]; None when none was just before it in its episode.

        A command that has the observation's own stamp answers it.
        """
        at = bisect.bisect_left(self.commands, stamp, key=lambda entry: entry[0]) - 1
        if at < 0:
            return None
        time, values = self.commands[at]
        episode = bisect.bisect_right(self.episodes, stamp, key=lambda entry: entry[0]) - 1
        begun = self.episodes[episode][0] if episode >= 0 else time
        recent = time >= begun and stamp - time <= RECENT_NS
        return values if recent and not np.isnan(values).any() else None

    def task(self, stamp: int, time: int) -> Task:
        """The task at an observation: of the episode that ran then, or the instruction that had arrived."""
        at = bisect.bisect_right(self.episodes, stamp, key=lambda entry: entry[0]) - 1
        if at >= 0:
            return self.episodes[at][1]
        at = bisect.bisect_right(self.instructions, time, key=lambda entry: entry[0]) - 1
        return Task(0, self.instructions[max(at, 0)][1] if self.instructions else "")


def topic_in(namespace: str, name: str) -> str:
    """A contract's topic as a bag names it."""
    return name if name.startswith("/") else f"/{namespace.strip('/')}/{name}".replace("//", "/")


def read_recorded(bag: Bag, contract: Contract, namespace: str = "") -> Recorded:
    """Read what was answered: a pass over the bag without its images."""
    found = Recorded()
    action = contract.action
    names = {topic_in(namespace, name): name for name in (action.chunks, action.commands, action.episode)}
    names[topic_in(namespace, contract.instruction_topic)] = "instruction"
    for record in bag.messages([*names, PROVENANCE]):
        try:
            message = record.message
        except BagError:
            found.damaged[record.topic] += 1
            continue
        if record.topic == PROVENANCE:
            found.provenance = _json(message.data)
        elif record.type == "rsd_msgs/msg/ActionChunk":
            _take_chunk(found, message)
        elif record.type == "rsd_msgs/msg/Action":
            found.commands.append((stamp_of(message), np.asarray(message.values, np.float32)))
        elif record.type == TWIST:
            found.commands.append((stamp_of(message), _from_twist(message.twist, action)))
        elif record.type == "rsd_msgs/msg/EpisodeStatus":
            task = Task(int(message.episode), str(message.instruction))
            if message.state == RUNNING and (not found.episodes or found.episodes[-1][1] != task):
                found.episodes.append((stamp_of(message), task))
        elif record.type == "std_msgs/msg/String" and message.data.strip():
            found.instructions.append((record.time, message.data))
    found.commands.sort(key=lambda entry: entry[0])
    found.episodes.sort(key=lambda entry: entry[0])
    return found


def _from_twist(twist: Any, meaning: ActionMeaning) -> NDArray[np.float32]:
    """A velocity command in action units; it says nothing about the gripper, which is NaN."""
    step_m, step_rad = (meaning.period_s / size for size in (meaning.translation_m, meaning.rotation_rad))
    linear, angular = twist.linear, twist.angular
    moves = [getattr(linear, axis) * step_m for axis in "xyz"] + [getattr(angular, axis) * step_rad for axis in "xyz"]
    return np.asarray([*moves, np.nan], np.float32)


def _take_chunk(found: Recorded, message: Any) -> None:
    size = int(message.horizon) * int(message.dof)
    if message.dof != ACTION_DIM or len(message.actions) != size or not size:
        return  # nothing to execute, or of another kind
    actions = np.asarray(message.actions, np.float32).reshape(message.horizon, message.dof)
    if not message.verified:
        found.drafts[stamp_of(message)] = actions
        return
    found.chunks[stamp_of(message)] = RecordedChunk(
        actions,
        str(message.mode),
        float(message.inference_ms),
        bool(message.accepted),
        bool(message.skipped),
        # chunks of releases before 0.2 do not have it
        str(getattr(message, "policy_sha256", "")),
    )


def _json(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class Shown:
    """One observation of a bag.

    Attributes:
        stamp: ns.
        time: when it was complete, by arrival, ns.
        context: changes with every episode, and where the stamps go back: the policy starts anew there.
        task: what was to be done.
        observation: what the policy is shown.
        executed: [7], the command that was executed last before it; None when that is not known.
        records: the messages that made it, and those beside them, in the order of arrival.
    """

    stamp: int
    time: int
    context: tuple[int, int]
    task: Task
    observation: Observation
    executed: NDArray[np.float32] | None
    records: tuple[tuple[str, Record], ...]


@dataclass
class Playback:
    """The observations of a bag, read as a stream.

    Args:
        bag: open.
        contract: of the robot that it was recorded from.
        recorded: of `read_recorded`.
        instruction: replaces what the bag says.
        period_s: with no recorded chunks in the bag, an observation is shown when so much time has passed.
        namespace: where the contract's relative topics are in the bag.

    Attributes:
        damaged: topic -> messages that could not be decoded.
        refused: what made an observation unusable -> how often.
        incomplete: stamps of recorded chunks of which the observation is not in the bag.
    """

    bag: Bag
    contract: Contract
    recorded: Recorded
    instruction: str = ""
    period_s: float = 0.4
    namespace: str = ""
    damaged: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    incomplete: list[int] = field(default_factory=list)

    def observations(self) -> Iterator[Shown]:
        """Each observation to be answered: those that were when it was recorded, else one per period.

        Raises:
            ArgumentError: a topic of the contract is not in the bag, or nobody says what to do.
        """
        contract = self.contract
        names = {topic_in(self.namespace, topic): name for name, (topic, _) in contract.inputs.items()}
        self._check(names)
        names |= {topic_in(self.namespace, topic): name for name, (topic, _) in contract.latched.items()}
        aligner = make_aligner(contract.inputs, contract.alignment)
        composer = Composer(contract)
        wanted = self.recorded.chunks
        missing = set(wanted)
        part, last = 0, None
        for record in self.bag.messages(names):
            name = names[record.topic]
            try:
                kept = composer.take(name, record.message)
                if kept is None:
                    continue
                # a pose that is made of transforms has a stamp, the message of them has none
                stamped = kept if name == "pose" else record.message
                stamp = record.time if contract.alignment.stamps == "arrival" else stamp_of(stamped)
            except BagError:
                self.damaged[record.topic] += 1
                continue
            if aligner.restart(name, stamp):
                part, last = part + 1, None
            for moment in aligner.add(name, stamp, (name, record, kept), record.time):
                if moment.stamp not in wanted if wanted else not self._due(moment.stamp, last):
                    continue
                last = moment.stamp
                shown = self._show(composer, moment, record.time, part)
                if shown is not None:
                    missing.discard(shown.stamp)
                    yield shown
        self.incomplete = sorted(missing)
        problem = composer.problem()
        if problem is not None:
            self.refused[problem] += 1

    def why_nothing(self) -> str:
        """Why there was no observation, to go on a sentence that says so."""
        reasons = [
            *self.bag.damage,
            *(f"{topic}: {count} messages are damaged" for topic, count in self.damaged.items()),
            *(f"{count} x {error}" for error, count in self.refused.most_common(3)),
        ]
        if not reasons:
            reasons = [
                f"no moment had all of {', '.join(self.contract.inputs)} "
                f"({self.contract.alignment.how} stamps; `rsd robot check` shows them)"
            ]
        return ": " + "; ".join(reasons)

    def _due(self, stamp: int, last: int | None) -> bool:
        return last is None or stamp - last >= round(self.period_s * 1e9)

    def _check(self, names: dict[str, str]) -> None:
        kinds = {topic_in(self.namespace, topic): kind for topic, kind in self.contract.inputs.values()}
        missing = [topic for topic in names if topic not in self.bag.topics]
        if missing:
            there = ", ".join(sorted(self.bag.topics)[:20]) or "none"
            damage = "".join(f"; {line}" for line in self.bag.damage)
            raise ArgumentError(
                f"{self.bag.path}: expected {', '.join(missing)} of the contract '{self.contract.robot}'; the bag has "
                f"{there}{damage}; give the right --robot or --namespace"
            )
        for topic, kind in kinds.items():
            found = self.bag.topics[topic].type
            if found != kind:
                raise ArgumentError(
                    f"{topic}: expected {kind} as in the contract '{self.contract.robot}', it is {found}"
                )

    def _show(self, composer: Composer, moment: Moment, time: int, part: int) -> Shown | None:
        task = self.recorded.task(moment.stamp, time)
        if self.instruction or not task.instruction:
            text = self.instruction or self.contract.instruction
            if not text:
                raise ArgumentError(
                    f"{self.bag.path}: nobody says in it what to do; give --instruction, or instruction.text in the "
                    "contract"
                )
            task = Task(task.episode, text)
        kept = {name: entry[2] for name, entry in moment.messages.items()}
        try:
            observation = composer.observation(kept, task.instruction, moment.stamp)
        except ObservationError as error:
            self.refused[str(error)] += 1
            return None
        records = tuple((name, record) for name, record, _ in moment.neighbours)
        executed = self.recorded.executed(moment.stamp)
        return Shown(moment.stamp, time, (part, task.episode), task, observation, executed, records)
