"""ScriptedExpert: solves tasks from privileged state, through the action that a policy has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert.close_door import CloseDoor
from sim_bridge.expert.close_drawer import CloseDrawer
from sim_bridge.expert.drag import FLAT, Drag
from sim_bridge.expert.motion import OPEN, JamDetector, action, free
from sim_bridge.expert.open_drawer import OpenDrawer, withdraw, withdrawing
from sim_bridge.expert.pick_place import PickPlace
from sim_bridge.expert.put_inside import PutInside
from sim_bridge.expert.scene import Goal, Scene
from sim_bridge.expert.set_aside import SetAside, in_the_way
from sim_bridge.expert.turn_knob import TurnKnob

if TYPE_CHECKING:
    from sim_bridge.libero_env import LiberoEnv

REACH, DEPTH = 1.0, 0.15
"""Nothing can be picked up farther than this from the robot's base (horizontally; the arm reaches 0.855 m), nor this
much lower than it, m: an object that fell off the table."""

PHASE_STEPS = 120
"""A phase that lasts longer than this many control steps leads nowhere: an object is pressed against another."""

Skill = PickPlace | TurnKnob | Drag | OpenDrawer | CloseDrawer | CloseDoor


def _skill(scene: Scene, goal: Goal) -> Skill:
    if goal.predicate == "open":
        return OpenDrawer(scene, goal)
    if goal.predicate == "aside":
        return SetAside(scene, goal)
    if goal.predicate == "close":
        return CloseDoor(scene, goal) if scene.has_door(goal.target) else CloseDrawer(scene, goal)
    if goal.predicate in ("turnon", "turnoff"):
        return TurnKnob(scene, goal)
    if float(np.ptp(scene.points(goal.target)[:, 2])) < FLAT and scene.on_table(goal):
        return Drag(scene, goal)
    if goal.predicate == "in" and scene.has_door(goal.place):
        return PutInside(scene, goal)
    return PickPlace(scene, goal)


class ScriptedExpert:
    """Pick and place for tasks whose goal is to put objects on or in something.

    Each action follows from the simulation's present state (see `PickPlace`), so that the expert goes on sensibly after
    a disturbance and can say at any moment what it would do where something else has driven the arm.

    Args:
        env: the environment to read; the expert never steps it.
        max_attempts: grasps to try before giving up; then `failed` is True and the actions open the gripper. It
            gives up earlier when it makes no progress (`PHASE_STEPS`).
    """

    def __init__(self, env: LiberoEnv, *, max_attempts: int = 1) -> None:
        if max_attempts < 1:
            raise ValueError(f"max_attempts: expected at least 1, got {max_attempts}")
        self._env = env
        self._max_attempts = max_attempts
        self.failed = False
        self._scene: Scene | None = None

    @property
    def phase(self) -> str:
        """What the expert is doing: "approach", "close", "carry", "release", or "failed"."""
        return "failed" if self.failed else self._skill.phase

    @property
    def skill(self) -> Skill:
        """What the expert does, since the last `reset`."""
        return self._skill

    def reset(self) -> None:
        """Look at the scene anew, forgetting all misses: at the start of an episode, or at any moment of it.

        Raises:
            SimulationError: the task is not a pick-and-place task.
        """
        if self._scene is None or not self._scene.views(self._env.raw):
            self._scene = Scene(self._env.raw)
        self._scene.refresh()
        self.failed = False
        self._misses = 0
        self._jams = JamDetector()
        self._phase_steps = 0
        self._skill = _skill(self._scene, self._unfinished(self._scene) or self._next_goal(self._scene))

    def act(self) -> NDArray[np.float32]:
        """The next action for the present state: float32 [7] in [-1, 1]."""
        if self._scene is None:
            self.reset()
        scene = self._scene
        assert scene is not None
        scene.refresh()
        goal = self._next_goal(scene)
        before = self._skill.goal, self._skill.phase
        holding = goal != self._skill.goal and scene.held(self._skill.goal.target)
        if goal != self._skill.goal and not holding:
            self._misses += self._skill.misses
            self._skill = _skill(scene, goal)
        if goal.place:
            reach = scene.position(goal.target) - scene.base_position()
            self.failed = self.failed or float(np.linalg.norm(reach[:2])) > REACH or float(reach[2]) < -DEPTH
        # the next goal waits until the hand is empty
        let_go = holding and self._skill.lowered(scene)
        if let_go:
            chosen = action(np.zeros(3), np.zeros(3), OPEN)
        elif (drawer := self._opened_drawer(scene)) is not None:
            chosen = withdraw(scene, drawer)
            # what is planned now would not know how far the drawer slides out
            self._skill = _skill(scene, self._skill.goal)
        else:
            chosen = self._skill.act(scene)
        same = before == (self._skill.goal, self._skill.phase)
        self._phase_steps = self._phase_steps + 1 if same else 0
        self.failed = self.failed or self._misses + self._skill.misses >= self._max_attempts
        self.failed = self.failed or self._phase_steps > PHASE_STEPS
        if self._jams.jammed(scene, chosen):
            chosen = free(scene, float(chosen[6]))
        if self.failed:
            chosen = action(np.zeros(3), np.zeros(3), OPEN)
        return np.clip(chosen, -1.0, 1.0).astype(np.float32)

    def _opened_drawer(self, scene: Scene) -> str | None:
        """Region of a drawer that the hand has just opened and still has to leave."""
        goal = self._skill.goal
        if isinstance(self._skill, OpenDrawer | CloseDrawer) or scene.held(goal.target):
            return None
        drawers = [other.target for other, _ in scene.goals() if other.predicate == "open"]
        return next((drawer for drawer in drawers if withdrawing(scene, drawer)), None)

    @classmethod
    def _unfinished(cls, scene: Scene) -> Goal | None:
        """What the hand was about to do with what it holds, and does before anything else: let go what is already where
        it belongs, set aside what belongs into a drawer that is still shut."""
        goals = scene.goals()
        there = [goal for goal, fulfilled in goals if fulfilled and goal.place]
        aside = [Goal("aside", goal.target, goal.place) for goal in cls._covered(goals)]
        return next((goal for goal in there + aside if scene.held(goal.target)), None)

    @staticmethod
    def _covered(goals: list[tuple[Goal, bool]]) -> list[Goal]:
        """Of `Scene.goals` those that wait for a drawer which is to be opened next."""
        left = [goal for goal, fulfilled in goals if not fulfilled]
        return [goal for goal in left if left[0].predicate == "open" and goal.place == left[0].target]

    @classmethod
    def _next_goal(cls, scene: Scene) -> Goal:
        """The first goal that is not fulfilled; one whose object is in the hand comes before the others."""
        goals = scene.goals()
        left = [goal for goal, fulfilled in goals if not fulfilled] or [goals[-1][0]]
        covered = cls._covered(goals)
        if covered and in_the_way(scene, covered[0]):
            return Goal("aside", covered[0].target, covered[0].place)
        return next((goal for goal in left if goal.predicate != "close" and scene.held(goal.target)), left[0])
