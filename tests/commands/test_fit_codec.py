"""`rsd fit-codec`: both kinds of demonstrations are read; a chunk holds only steps that answer to one state."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from rsd_policy.codec import RFSQCodec
from rsd_policy.commands.fit_codec import main
from rsd_policy.errors import ActionError, RSDError
from rsd_policy.training.codec_data import ActionEpisode, read_actions, valid_chunks


def actions(steps: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).uniform(-1, 1, (steps, 7)).astype(np.float32)
    drawn[:, 6] = np.sign(drawn[:, 6])
    return drawn


def write(path: Path, lengths: list[int]) -> None:
    """A file with the layout of LIBERO's demonstrations."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for index, steps in enumerate(lengths):
            file.create_dataset(f"data/demo_{index}/actions", data=actions(steps, index).astype(np.float64))


def test_liberos_demonstrations_are_read_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "suite" / "task_demo.hdf5", list(range(10, 22)))
    episodes = read_actions(tmp_path)
    assert [len(e.actions) for e in episodes] == list(range(10, 22))
    assert {e.task for e in episodes} == {"suite/task_demo"}
    np.testing.assert_array_equal(episodes[3].actions, actions(13, 3))
    assert not episodes[0].noisy.any()


def test_what_moves_nothing_is_left_out_of_peoples_demonstrations(tmp_path: Path) -> None:
    moving = actions(12)
    moving[:, 6] = -1.0
    moving[3:6, :6] = 0.0
    moving[5:, 6] = 1.0
    with h5py.File(tmp_path / "task_demo.hdf5", "w") as file:
        file["data/demo_0/actions"] = moving
    (episode,) = read_actions(tmp_path)
    np.testing.assert_array_equal(episode.actions, np.delete(moving, [3, 4], axis=0))


def test_what_the_expert_wanted_is_read_of_collected_demonstrations(tmp_path: Path) -> None:
    executed = actions(12)
    executed[4] *= 0.5
    with h5py.File(tmp_path / "task03-seed00000001.hdf5", "w") as file:
        file["data/demo_0/actions"], file["data/demo_0/expert_actions"] = executed, actions(12)
    (episode,) = read_actions(tmp_path)
    np.testing.assert_array_equal(episode.actions, actions(12))
    np.testing.assert_array_equal(episode.executed, executed)
    assert episode.task.endswith("/task03")
    assert episode.noisy.tolist() == [step == 4 for step in range(12)]


def test_a_noisy_step_ends_the_chunks_before_it() -> None:
    """What was wanted after a noisy step answers to where the noise led; the noisy step's own label is good."""
    noisy = np.zeros(20, dtype=bool)
    noisy[10] = True
    episode = ActionEpisode("one", actions(20), actions(20), noisy)
    chunks = valid_chunks([episode], 8)
    starts = [0, 1, 2, 3, 11, 12]
    np.testing.assert_array_equal(chunks, np.stack([episode.actions[s : s + 8] for s in starts]))


def test_what_is_not_a_demonstration_is_named(tmp_path: Path) -> None:
    with pytest.raises(RSDError, match="found none"):
        read_actions(tmp_path)
    (tmp_path / "broken.hdf5").write_bytes(b"no")
    with pytest.raises(RSDError, match=r"broken\.hdf5"):
        read_actions(tmp_path)
    with pytest.raises(ActionError, match=r"\[-1, 1\]"):
        ActionEpisode("far", 2 * np.ones((9, 7), np.float32), np.ones((9, 7), np.float32), np.zeros(9, bool))
    with pytest.raises(RSDError, match="noiseless"):
        valid_chunks([ActionEpisode("short", actions(5), actions(5), np.zeros(5, bool))], 8)


def test_fit_codec_writes_the_manifest_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "task_demo.hdf5", [30, 40])
    out = tmp_path / "new" / "codec.json"
    assert main(["--data", str(tmp_path), "--out", str(out)]) == 0
    codec = RFSQCodec.from_manifest(json.loads(out.read_text()))
    assert codec.limit.tolist()[:6] == [1.0] * 6
    printed = capsys.readouterr().out
    assert "L0-L7" in printed and str(out) in printed
