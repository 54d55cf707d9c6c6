"""Composed tasks: LIBERO loads them, instructions fit the scene, and nothing of LIBERO-PRO's is among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rsd_policy.commands.collect import main
from rsd_policy.errors import SimulationError
from rsd_policy.libero import BASE_SUITE, SUITES
from rsd_policy.training.mini.paraphrase import plain, wordings
from sim_bridge.compose.env import ComposedEnv
from sim_bridge.compose.layout import WORKSPACE
from sim_bridge.compose.scenes import scenes
from sim_bridge.compose.task import compose
from sim_bridge.compose.wording import Reference, instruction
from sim_bridge.demonstrations import read_demonstrations
from sim_bridge.held_out import APART, distance_to_shipped, held_out_wordings
from sim_bridge.libero_assets import import_libero, num_tasks, task_spec
from sim_bridge.libero_env import LiberoEnv

NUMBERS = range(300)


def test_every_composed_task_is_a_definition_that_libero_reads(tmp_path: Path) -> None:
    """LIBERO's parser keeps the last line of a category only, and everything named must be there."""
    import_libero()
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    for number in NUMBERS:
        task = compose(number)
        path = tmp_path / "task.bddl"
        path.write_text(task.definition)
        parsed = robosuite_parse_problem(str(path))
        there = {name for names in (*parsed["objects"].values(), *parsed["fixtures"].values()) for name in names}
        assert {name for names in parsed["objects"].values() for name in names} == set(task.layout.objects)
        assert tuple(map(tuple, parsed["goal_state"])) == task.goal.states
        for state in (*parsed["initial_state"], *parsed["goal_state"]):
            for argument in state[1:]:
                assert argument in there or argument in parsed["regions"], (number, state)
        placed = [state[1] for state in parsed["initial_state"] if state[0] in ("on", "in")]
        assert sorted(placed) == sorted(there - {task.scene.table}), "something has no place, or two"


def test_a_number_is_one_task_and_all_skills_come() -> None:
    assert compose(7).definition == compose(7).definition != compose(8).definition
    skills = {compose(number).goal.skill for number in NUMBERS}
    assert skills >= {"on object", "in container", "in drawer", "open drawer", "close drawer", "turn on", "push"}
    moved = [compose(number) for number in NUMBERS if compose(number).layout.fixtures]
    away = [
        np.hypot(p.x - t.scene.places[n].x, p.y - t.scene.places[n].y)
        for t in moved
        for n, p in t.layout.fixtures.items()
    ]
    assert max(away) > 0.3, "fixtures never leave their side of the table"


def test_no_instruction_of_ours_is_one_of_libero_pro() -> None:
    """Neither those of composed tasks nor the paraphrases that training makes of any instruction. The latter gave ten
    of LIBERO-PRO's wordings in some 100,000 draws."""
    pro = held_out_wordings()
    assert plain(task_spec("libero_goal_lan", 5).instruction) in pro
    assert plain(task_spec("libero_goal", 5).instruction) not in pro
    assert {plain(task_spec(suite, 0).instruction) for suite in BASE_SUITE if suite.endswith("_lan")} <= pro
    own = {task_spec(suite, task).instruction for suite in SUITES for task in range(num_tasks(suite))}
    drawn = {text for goal in own for text in wordings(goal, 200, 1)}
    assert {plain(text) for text in drawn} & pro, "the paraphraser gives none by chance: the filter is not tried"
    rng = np.random.default_rng(0)
    for number in NUMBERS:
        task = compose(number)
        names = {**task.scene.fixtures, **task.layout.objects}
        low_x, low_y, high_x, high_y = WORKSPACE[task.scene.problem]
        for _ in range(5):
            where = {n: np.array([rng.uniform(low_x, high_x), rng.uniform(low_y, high_y), 0.9]) for n in names}
            try:
                own.add(instruction(task.goal, Reference(names, where, task.layout.settled, rng), rng))
            except SimulationError as error:
                assert "tells it from" in str(error)
    assert len(own) > 800
    allowed = {plain(text) for goal in own for text in wordings(goal, 32, 0, pro)}
    assert not allowed & pro


def test_two_alike_are_told_apart_by_where_they_are() -> None:
    """The instruction is what tells a policy which of two bowls is meant: it must fit one of them only."""
    names = {"bowl_1": "akita_black_bowl", "bowl_2": "akita_black_bowl", "plate_1": "plate", "stove": "flat_stove"}
    where = {
        "bowl_1": np.array([0.0, 0.1, 0.9]),
        "bowl_2": np.array([0.01, -0.2, 0.9]),
        "plate_1": np.array([0.1, 0.1, 0.9]),
        "stove": np.array([-0.4, 0.0, 0.9]),
    }
    said = [
        {Reference(names, where, {}, np.random.default_rng(seed)).the(bowl) for seed in range(40)}
        for bowl in ("bowl_1", "bowl_2")
    ]
    assert said[0] == {f"the {way}" for b in ("black bowl", "bowl") for way in (f"{b} next to the plate", f"right {b}")}
    assert said[1] == {"the left black bowl", "the left bowl"}
    settled = Reference(names, where, {"bowl_2": ("on", "stove_cook_region")}, np.random.default_rng(0))
    assert settled.the("bowl_2").endswith("bowl on the stove")


def test_a_shipped_placement_is_recognised() -> None:
    """The comparison reads the objects' places out of MuJoCo's states: it must find those that are there."""
    for suite in ("libero_goal_swap", "libero_spatial"):
        with LiberoEnv(suite, 4, render=False) as env:
            env.reset(7)
            raw = env.raw
            raw.sim.set_state_from_flattened(env._init_states[7])
            raw.sim.forward()
            here = {name: raw.sim.data.body_xpos[raw.obj_body_id[name]].copy() for name in raw.objects_dict}
            problem = type(raw).__name__.lower()
        assert distance_to_shipped(problem, here) < 1e-6
        moved = {name: place + np.array([0.02, 0.0, 0.0]) for name, place in here.items()}
        assert distance_to_shipped(problem, moved) > APART


def test_a_composed_episode_is_collected_and_like_no_shipped_state(tmp_path: Path) -> None:
    """From the command line to what training reads: another placement each time, words of ours, clean labels."""
    number = 12
    with ComposedEnv(number, render=False) as env:
        goal, places = env.composed.goal, []
        for seed in range(6):
            env.reset(seed=seed)
            place = {name: env.sim.data.body_xpos[env.raw.obj_body_id[name]].copy() for name in env.raw.objects_dict}
            assert distance_to_shipped(env.composed.scene.problem, place) > APART
            places.append(np.stack(list(place.values())))
            said = env.instruction
    assert goal.skill == "in container" and "cream cheese" in said and "basket" in said
    spread = np.ptp(np.stack(places)[:, :, :2], axis=0)
    assert spread.max() > 0.2, "things stand in one region"
    assert main(["--compose", "--demos", "1", "--seed", str(number), "--every", "8", "--out", str(tmp_path)]) == 0
    (demonstration,) = read_demonstrations(tmp_path)
    assert (demonstration.suite, demonstration.task) == ("composed", number)
    assert plain(demonstration.instruction) not in held_out_wordings() and "basket" in demonstration.instruction
    assert len(demonstration.images) == len(range(0, len(demonstration.actions), 8))


def test_scenes_are_those_of_libero_alone() -> None:
    """Objects and fixtures that only LIBERO-PRO has are never drawn."""
    assert len(scenes()) >= 30
    known = {c for scene in scenes() for c in (*scene.objects.values(), *scene.fixtures.values())}
    assert {c for n in NUMBERS for c in compose(n).layout.objects.values()} <= known
