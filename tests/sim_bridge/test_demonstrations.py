"""Demonstration files: what is written is read back; LIBERO's own files are read with their conventions."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from rsd_policy.errors import RSDError
from sim_bridge.demonstrations import Demonstration, SimulatorTrace, read_demonstrations, write_demonstration
from sim_bridge.demonstrations_libero import frame_lag
from sim_bridge.libero_assets import task_spec

STEPS = 12
BDDL = "chiliocosm/bddl_files/libero_goal/put_the_bowl_on_the_stove.bddl"


def demonstration(every: int) -> Demonstration:
    rng = np.random.default_rng(0)
    frame_steps = np.arange(0, STEPS, every)
    actions = rng.uniform(-1, 1, (STEPS, 7)).astype(np.float32)
    executed = actions.copy()
    executed[4, 1] += 0.25
    return Demonstration(
        suite="libero_goal",
        task=5,
        seed=42,
        instruction="put the bowl on top of the cabinet",
        images=rng.integers(0, 256, (len(frame_steps), 2, 16, 16, 3), dtype=np.uint8),
        frame_steps=frame_steps,
        proprio=rng.normal(size=(len(frame_steps), 8)).astype(np.float32),
        actions=actions,
        executed=executed,
        noisy=np.arange(STEPS) == 4,
        pose=rng.normal(size=(len(frame_steps), 10)).astype(np.float32),
    )


def trace(frames: int) -> SimulatorTrace:
    rng = np.random.default_rng(1)
    return SimulatorTrace(
        "libero_tabletop_manipulation",
        task_spec("libero_goal", 5).name,
        task_spec("libero_goal", 5).bddl_file.read_text(),
        quaternions=rng.normal(size=(frames, 4)),
        joints=rng.normal(size=(frames, 7)),
        states=rng.normal(size=(STEPS, 30)),
    )


@pytest.mark.parametrize("every", [1, 2])
def test_an_episode_is_read_back_as_it_was_written(tmp_path: Path, every: int) -> None:
    written = demonstration(every)
    write_demonstration(tmp_path, written, trace(len(written.frame_steps)))
    (read,) = read_demonstrations(tmp_path)
    for name in Demonstration.__dataclass_fields__:
        expected, got = getattr(written, name), getattr(read, name)
        assert np.array_equal(expected, got) and getattr(expected, "dtype", None) == getattr(got, "dtype", None), name
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".hdf5"], "a partial file was left"


def test_with_a_frame_at_every_step_the_layout_is_that_of_libero(tmp_path: Path) -> None:
    """Names and lengths as LIBERO's create_dataset.py writes them and its training reads them."""
    written = demonstration(every=1)
    path = write_demonstration(tmp_path, written, trace(STEPS))
    with h5py.File(path) as file:
        data, episode = file["data"], file["data/demo_0"]
        assert {"env_name", "problem_info", "macros_image_convention", "bddl_file_name", "env_args"} <= set(data.attrs)
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == written.instruction
        assert "(define (problem" in data.attrs["bddl_file_content"]
        assert episode.attrs["num_samples"] == data.attrs["total"] == STEPS
        widths = {"ee_pos": 3, "ee_ori": 3, "ee_states": 6, "gripper_states": 2, "joint_states": 7}
        assert {name: episode["obs"][name].shape for name in widths} == {n: (STEPS, w) for n, w in widths.items()}
        assert episode["robot_states"].shape == (STEPS, 9) and episode["states"].shape == (STEPS, 30)
        assert episode["dones"][()].tolist() == episode["rewards"][()].tolist() == [0] * (STEPS - 1) + [1]
        assert np.array_equal(episode["actions"], written.executed)
        # robosuite renders them turned by 180 degrees, and so they are stored
        assert np.array_equal(episode["obs/agentview_rgb"][0], written.images[0, 0, ::-1, ::-1])


@pytest.mark.parametrize("own", [True, False])
def test_demonstrations_of_perturbed_suites_are_never_read(tmp_path: Path, own: bool) -> None:
    """LIBERO-PRO's tasks keep the names of LIBERO's: its files would pass for those of the task that they perturb."""
    path = write_demonstration(tmp_path, demonstration(1), trace(STEPS))
    with h5py.File(path, "r+") as file:
        file["data"].attrs["suite"] = "libero_goal_swap"
        file["data"].attrs["bddl_file_name"] = BDDL.replace("libero_goal", "libero_goal_swap")
        if not own:
            del file["data/demo_0/expert_actions"]
    with pytest.raises(RSDError, match="kept for evaluation; got suite libero_goal_swap"):
        list(read_demonstrations(tmp_path))


def motion(rows: int) -> np.ndarray:
    """MuJoCo's states [rows + 1, 20] of an arm that speeds up and slows down as a hand-led one does, at 20 Hz."""
    steps = np.random.default_rng(3).normal(0.0, 0.01, (rows + 1, 7))
    states = np.zeros((rows + 1, 20))
    states[:, 0] = 0.25 + 0.05 * np.arange(rows + 1)
    states[:, 1:8] = np.cumsum(steps, axis=0)
    return states


def write_other(path: Path, actions: list[list[float]], lag: int, numbers: tuple[int, ...] = (10, 2)) -> None:
    """Episodes whose observations show the state `lag` rows after the one before their action, by number as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(actions)
    states = motion(count + abs(lag))
    first = max(0, -lag)  # row of `states` before action 0
    shown = np.arange(count) + first + lag
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number in numbers:
            episode = data.create_group(f"demo_{number}")
            episode["actions"] = np.array(actions, dtype=np.float64)
            episode["states"] = states[first : first + count]
            episode["obs/joint_states"] = states[shown, 1:8]
            for name, width in (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2)):
                episode[f"obs/{name}"] = np.tile((shown - first).astype(float)[:, None], width)
            for name in ("agentview_rgb", "eye_in_hand_rgb"):
                image = np.zeros((count, 16, 16, 3), dtype=np.uint8)
                image[:, 0, 0, 0] = shown
                episode[f"obs/{name}"] = image


def write_as_libero_does(path: Path, actions: list[list[float]]) -> None:
    """Attributes, and observations that follow the action of their row."""
    write_other(path, actions, lag=1)
    with h5py.File(path, "a") as file:
        file["data"].attrs["bddl_file_name"] = BDDL
        problem = {"language_instruction": "put the akita black bowl on the flat stove"}
        file["data"].attrs["problem_info"] = json.dumps(problem)


MOVE, STAY, CLOSE = [0.5, 0, 0, 0, 0, 0, -1.0], [0, 0, 0, 0, 0, 0, -1.0], [0, 0, 0, 0, 0, 0, 1.0]
ACTIONS = [MOVE, MOVE, STAY, MOVE, CLOSE, CLOSE, MOVE, MOVE, MOVE, MOVE]


def test_libero_files_are_read_with_their_conventions(tmp_path: Path) -> None:
    write_as_libero_does(tmp_path / "libero_goal" / "bowl_demo.hdf5", ACTIONS)
    episodes = list(read_demonstrations(tmp_path))
    assert [(e.suite, e.task, e.seed) for e in episodes] == [("libero_goal", 1, 2), ("libero_goal", 1, 10)]
    first = episodes[0]
    assert first.instruction == "put the bowl on the stove", "published evaluations say it like this"
    # observation j precedes action j + 1; pauses (actions 2 and 5) are left out; state j is the one before action j
    before = [1, 3, 4, 6, 7, 8, 9]
    assert first.proprio[:, 0].tolist() == before
    assert first.actions.tolist() == np.array(ACTIONS, np.float32)[before].tolist()
    assert first.images[:, 0, -1, -1, 0].tolist() == before, "images are turned upright"
    assert first.frame_steps.tolist() == list(range(7)) and not first.noisy.any() and not first.collected
    assert first.actions.dtype == first.executed.dtype == first.proprio.dtype == np.float32


def test_a_file_without_attributes_is_read_by_its_name_and_its_observations_precede_its_actions(tmp_path: Path) -> None:
    """As OpenVLA-OFT's regeneration writes them; "can't locate attribute 'bddl_file_name'" until it was read."""
    write_other(tmp_path / "libero_goal_no_noops" / "put_the_bowl_on_the_stove_demo.hdf5", ACTIONS, lag=0)
    first, _ = read_demonstrations(tmp_path)
    assert (first.suite, first.task, first.seed) == ("libero_goal", 1, 2)
    assert first.instruction == "put the bowl on the stove"
    before = [0, 1, 3, 4, 6, 7, 8, 9]
    assert first.proprio[:, 0].tolist() == first.images[:, 0, -1, -1, 0].tolist() == before
    assert first.actions.tolist() == np.array(ACTIONS, np.float32)[before].tolist()


@pytest.mark.parametrize("lag", [-1, 2])
def test_a_file_whose_observations_are_shifted_by_a_frame_is_refused(tmp_path: Path, lag: int) -> None:
    """Neither convention: with either, every label would be that of another frame."""
    write_other(tmp_path / "put_the_bowl_on_the_stove_demo.hdf5", ACTIONS, lag)
    with pytest.raises(RSDError, match=r"cannot tell whether obs precedes or follows the action of its row"):
        list(read_demonstrations(tmp_path))


def test_a_drifted_playback_does_not_hide_what_a_row_of_observations_means() -> None:
    """create_dataset.py renders a playback of the actions; its arm may end some way from the recorded one."""
    states = motion(40)
    drift = np.linspace(0.0, 0.1, 40)[:, None]
    assert frame_lag([(states[:-1], states[1:, 1:8] + drift)]) == 1
    assert frame_lag([(states[:-1], states[:-1, 1:8] + drift)]) == 0


def test_rows_that_were_left_out_do_not_hide_what_a_row_of_observations_means() -> None:
    """Others drop the pauses from a file: the motion across such a gap is not that of one step."""
    states = motion(40)
    kept = np.delete(np.arange(40), [7, 8, 20, 31])
    assert frame_lag([(states[kept], states[kept + 1, 1:8])]) == 1
    assert frame_lag([(states[kept], states[kept, 1:8])]) == 0


def test_an_arm_that_never_moves_tells_no_convention() -> None:
    states = motion(40)
    states[:, 1:] = 0.5
    with pytest.raises(ValueError, match="cannot tell"):
        frame_lag([(states, states[:, 1:8])])


@pytest.mark.parametrize("name", ["states", "obs/joint_states", "actions", "obs/eye_in_hand_rgb"])
def test_what_another_projects_file_lacks_is_named_and_no_file_is_to_be_removed(tmp_path: Path, name: str) -> None:
    """ "remove it and collect again" was the advice about files that nobody here had collected."""
    path = tmp_path / "put_the_bowl_on_the_stove_demo.hdf5"
    write_other(path, ACTIONS, lag=0)
    with h5py.File(path, "a") as file:
        del file[f"data/demo_10/{name}"]
    with pytest.raises(RSDError, match=rf"stove_demo\.hdf5.*/data/demo_10.*missing \['{name}'\]") as caught:
        list(read_demonstrations(tmp_path))
    assert "remove" not in str(caught.value) and "collect" not in str(caught.value)


def test_a_file_that_names_no_task_says_what_names_are_expected(tmp_path: Path) -> None:
    write_other(tmp_path / "my_own_task_demo.hdf5", ACTIONS, lag=0)
    with pytest.raises(RSDError, match=r"name of a task of libero_spatial.*got 'my_own_task'"):
        list(read_demonstrations(tmp_path))


@pytest.mark.parametrize("broken", ["empty", "no demonstration", "unknown task"])
def test_a_file_that_is_no_demonstration_is_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "x.hdf5"
    if broken == "empty":
        path.write_bytes(b"")
    elif broken == "no demonstration":
        with h5py.File(path, "w") as file:
            file["other"] = 1
    else:
        write_as_libero_does(path, ACTIONS)
        with h5py.File(path, "a") as file:
            file["data"].attrs["bddl_file_name"] = "elsewhere/unknown.bddl"
    with pytest.raises(RSDError, match=r"x\.hdf5"):
        list(read_demonstrations(tmp_path))
