"""Demonstration files: what is written is read back; LIBERO's own files are read with their conventions."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from rsd_policy.errors import RSDError
from sim_bridge.demonstrations import Demonstration, SimulatorTrace, read_demonstrations, write_demonstration

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
    )


def trace(frames: int) -> SimulatorTrace:
    rng = np.random.default_rng(1)
    return SimulatorTrace(
        "libero_tabletop_manipulation",
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


def write_as_libero_does(path: Path, actions: list[list[float]]) -> None:
    """Two episodes; each row's observations show its own number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(actions)
    rows = np.arange(count, dtype=np.float64)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["bddl_file_name"] = BDDL
        data.attrs["problem_info"] = json.dumps({"language_instruction": "put the akita black bowl on the flat stove"})
        for number in (10, 2):
            episode = data.create_group(f"demo_{number}")
            episode["actions"] = np.array(actions, dtype=np.float64)
            for name, width in (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2)):
                episode[f"obs/{name}"] = np.tile(rows[:, None], width)
            for name in ("agentview_rgb", "eye_in_hand_rgb"):
                image = np.zeros((count, 16, 16, 3), dtype=np.uint8)
                image[:, 0, 0, 0] = rows
                episode[f"obs/{name}"] = image


def test_libero_files_are_read_with_their_conventions(tmp_path: Path) -> None:
    move, still, close = [0.5, 0, 0, 0, 0, 0, -1.0], [0, 0, 0, 0, 0, 0, -1.0], [0, 0, 0, 0, 0, 0, 1.0]
    write_as_libero_does(tmp_path / "libero_goal" / "bowl_demo.hdf5", [move, move, still, move, close, close])
    episodes = list(read_demonstrations(tmp_path))
    assert [(e.suite, e.task, e.seed) for e in episodes] == [("libero_goal", 1, 2), ("libero_goal", 1, 10)]
    first = episodes[0]
    assert first.instruction == "put the bowl on the stove", "published evaluations say it like this"
    # observation j precedes action j + 1; pauses (actions 2 and 5) are left out
    assert first.proprio[:, 0].tolist() == [0, 2, 3]
    assert first.actions.tolist() == np.array([move, move, close], np.float32).tolist()
    assert first.images[:, 0, -1, -1, 0].tolist() == [0, 2, 3], "images are turned upright"
    assert first.frame_steps.tolist() == [0, 1, 2] and not first.noisy.any()
    assert first.actions.dtype == first.executed.dtype == first.proprio.dtype == np.float32


@pytest.mark.parametrize("broken", ["empty", "no demonstration", "unknown task"])
def test_a_file_that_is_no_demonstration_is_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "x.hdf5"
    if broken == "empty":
        path.write_bytes(b"")
    elif broken == "no demonstration":
        with h5py.File(path, "w") as file:
            file["other"] = 1
    else:
        write_as_libero_does(path, [[0.5, 0, 0, 0, 0, 0, 1.0]] * 3)
        with h5py.File(path, "a") as file:
            file["data"].attrs["bddl_file_name"] = "elsewhere/unknown.bddl"
    with pytest.raises(RSDError, match=r"x\.hdf5"):
        list(read_demonstrations(tmp_path))
