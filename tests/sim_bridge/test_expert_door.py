"""ScriptedExpert puts a mug into the microwave and shuts its door, also where the door or the grip is in the way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sim_bridge.expert import ScriptedExpert
from sim_bridge.expert.pick_place import PickPlace
from sim_bridge.expert.put_inside import handle
from sim_bridge.expert.scene import Goal, Scene
from sim_bridge.libero_env import LiberoEnv

MUG, INSIDE = "white_yellow_mug_1", "microwave_1_heating_region"


@pytest.fixture(scope="module")
def microwave() -> Iterator[LiberoEnv]:
    with LiberoEnv("libero_10", 9, render=False) as env:
        yield env


def run(env: LiberoEnv, expert: ScriptedExpert, steps: int) -> list[str]:
    """Let the expert drive to success, at most so many steps: what it did, in this order."""
    done: list[str] = []
    for _ in range(steps):
        action = expert.act()
        step = f"{expert.skill.goal.predicate} {expert.phase}"
        if done[-1:] != [step]:
            done.append(step)
        if env.step(action, render=False):
            return done
    pytest.fail(f"expected success within {steps} control steps, got as far as {done}")


def test_mug_goes_in_and_the_door_is_pushed_shut(microwave: LiberoEnv) -> None:
    microwave.reset(None, seed=3000)
    expert = ScriptedExpert(microwave)
    expert.reset()
    done = run(microwave, expert, 220)
    assert done == ["in approach", "in close", "in carry", "close leave", "close approach", "close push"]


def test_hand_passes_the_edge_of_a_door_that_stands_in_its_way(microwave: LiberoEnv) -> None:
    """The hand pressed against the free edge, which does not give way, until the expert gave up."""
    microwave.reset(11)
    expert = ScriptedExpert(microwave)
    expert.reset()
    run(microwave, expert, 220)


def test_mug_that_is_held_by_its_rim_is_set_down_and_gripped_by_its_handle(microwave: LiberoEnv) -> None:
    microwave.reset(None, seed=3001)
    scene = Scene(microwave.raw)
    scene.refresh()
    other = PickPlace(scene, Goal("in", MUG, INSIDE))
    while other.phase != "carry":
        microwave.step(np.clip(other.act(scene), -1, 1), render=False)
        scene.refresh()
    for _ in range(8):
        microwave.step([0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 1.0], render=False)
    expert = ScriptedExpert(microwave, max_attempts=2)
    expert.reset()
    assert run(microwave, expert, 300)[:3] == ["in carry", "in release", "in approach"]


def test_closed_door_s_outer_side_is_the_front(microwave: LiberoEnv) -> None:
    microwave.reset(None, seed=3000)
    scene = Scene(microwave.raw)
    scene.refresh()
    opened = scene.door("microwave_1")
    assert opened.outwards @ opened.front < 0.3
    microwave.sim.data.set_joint_qpos("microwave_1_microjoint", 0.0)
    scene.refresh()
    closed = scene.door(INSIDE)
    for outwards in (closed.outwards, closed.front, opened.front):
        assert outwards == pytest.approx([0.0, -1.0, 0.0], abs=1e-6)
    assert closed.along == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)
    assert closed.length == pytest.approx(0.259, abs=1e-3) and closed.face == pytest.approx(0.025, abs=1e-3)


def test_handle_is_what_stands_out_below_the_rim() -> None:
    angle = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    ring = 0.05 * np.stack([np.cos(angle), np.sin(angle), np.zeros(100)], axis=1)
    rings = [ring + np.array([0.0, 0.0, z]) for z in np.linspace(0, 0.1, 11)]
    bar = np.array([[0.08, y, z] for y in (-0.008, 0.008) for z in np.linspace(0.03, 0.07, 5)])
    middle, forwards = handle(np.concatenate([*rings, bar]))
    assert middle == pytest.approx([0.08, 0.0, 0.05]) and forwards == pytest.approx([-1.0, 0.0, 0.0], abs=1e-6)
