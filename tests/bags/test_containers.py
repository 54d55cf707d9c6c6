"""Every container that bags come in, and what happens when one is not whole."""

from __future__ import annotations

import random
import shutil
import sqlite3

import numpy as np
import pytest

from rsd_policy.bags.playback import Playback, read_recorded
from rsd_policy.bags.reader import Bag
from rsd_policy.bags.writer import BagWriter
from rsd_policy.errors import ArgumentError, BagError, RSDError
from rsd_policy.robots.contract import load_contract
from tests.bags.synthetic import CONTAINERS, INSTRUCTION, chunk_row, pre_foxy, recorded, robot, split

CONTRACT = load_contract()


def observations(path):
    """Everything that a replay would show of a bag, and what it would say about it."""
    with Bag(path) as bag:
        playback = Playback(bag, CONTRACT, read_recorded(bag, CONTRACT), period_s=0.0)
        shown = list(playback.observations())
        return shown, bag.damage, playback


@pytest.fixture(scope="module")
def rows():
    return robot()


@pytest.fixture(scope="module")
def expected(rows, tmp_path_factory):
    shown, damage, _ = observations(recorded(tmp_path_factory.mktemp("expected") / "bag", rows))
    assert len(shown) == 6 and damage == []
    return shown


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_shows_the_same_observations(container, rows, expected, tmp_path):
    shown, damage, _ = observations(CONTAINERS[container](tmp_path / "bag", rows))
    assert damage == []
    assert [s.stamp for s in shown] == [s.stamp for s in expected]
    for ours, theirs in zip(shown, expected, strict=True):
        assert ours.observation.instruction == INSTRUCTION
        assert ours.observation.proprio.tobytes() == theirs.observation.proprio.tobytes()
        for name, image in theirs.observation.images.items():
            assert np.array_equal(ours.observation.images[name], image)


@pytest.mark.parametrize("container", ["mcap", "sqlite3", "split"])
def test_a_directory_without_metadata_is_read_by_its_files(container, rows, expected, tmp_path):
    bag = CONTAINERS[container](tmp_path / "bag", rows)
    (bag / "metadata.yaml").unlink()
    shown, damage, _ = observations(bag)
    assert len(shown) == len(expected) and damage == []


def test_metadata_that_names_a_missing_file_is_said_and_the_others_are_read(rows, tmp_path):
    bag = split(tmp_path / "bag", rows)
    (bag / "bag_1.mcap").unlink()
    shown, damage, _ = observations(bag)
    assert 2 <= len(shown) < 6
    assert damage == ["metadata.yaml names bag_1.mcap, which is not there"]


@pytest.mark.parametrize("text", ["{", "rosbag2_bagfile_information: 7", "\x00"], ids=["cut", "other", "zero"])
def test_metadata_that_is_rubbish_is_said_and_not_needed(text, rows, expected, tmp_path):
    bag = recorded(tmp_path / "bag", rows)
    (bag / "metadata.yaml").write_text(text)
    shown, damage, _ = observations(bag)
    assert len(shown) == len(expected)
    assert len(damage) == 1 and damage[0].startswith("metadata.yaml was not used")


def test_split_files_follow_each_other_by_number_not_by_letter(tmp_path, rows):
    bag = split(tmp_path / "bag", rows)
    (bag / "metadata.yaml").unlink()
    for old, new in (("bag_2", "bag_10"), ("bag_1", "bag_9")):
        (bag / f"{old}.mcap").rename(bag / f"{new}.mcap")
    shown, _, _ = observations(bag)
    assert [s.stamp for s in shown] == sorted(s.stamp for s in shown) and len(shown) == 6


def test_a_recording_that_was_killed_is_read_as_far_as_it_was_written(tmp_path):
    bag = recorded(tmp_path / "bag", robot(20, size=300))
    file = bag / "bag.mcap"
    (bag / "metadata.yaml").unlink()
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    shown, damage, _ = observations(bag)
    assert 0 < len(shown) < 20
    assert len(damage) == 1 and "ends in the middle of a record" in damage[0]


def test_a_flipped_bit_in_an_image_of_our_own_recordings_is_noticed(tmp_path):
    """A checksum per chunk: without it the changed image would be replayed as if it had been seen."""
    bag = recorded(tmp_path / "bag", robot(30, size=200))
    file = bag / "bag.mcap"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(bytes(data))
    shown, damage, _playback = observations(bag)
    assert 20 < len(shown) < 30, "the other chunks are whole"
    assert len(damage) == 1 and "1 chunks are damaged and left out" in damage[0]


@pytest.mark.parametrize(
    "container", ["rsd record", "mcap", "mcap without index", "sqlite3", "ROS 1", "mcap, zstd file"]
)
def test_no_truncation_and_no_flipped_byte_ends_in_a_traceback(container, rows, tmp_path):
    """50 truncations and 200 flipped bytes over all containers: an error of ours, or what is whole."""
    path = CONTAINERS[container](tmp_path / "bag", rows)
    file = path if path.is_file() else next(p for p in path.iterdir() if p.suffix != ".yaml")
    whole = file.read_bytes()
    dice = random.Random(container)
    damaged = [whole[: dice.randrange(len(whole))] for _ in range(9)]
    for _ in range(34):
        data = bytearray(whole)
        data[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        damaged.append(bytes(data))
    read = 0
    for data in damaged:
        file.write_bytes(data)
        try:
            shown, _, _ = observations(path)
            read += bool(shown)
        except RSDError as error:
            assert str(error)
    assert read, "some of them hold something whole"


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("nothing.mcap", None, ArgumentError),
        ("notes.txt", b"hello", ArgumentError),
        ("empty.mcap", b"", BagError),
        ("empty.db3", b"", BagError),
        ("rubbish.db3", b"rubbish" * 1000, BagError),
        ("rubbish.bag", b"rubbish" * 1000, BagError),
        ("rubbish.mcap.zstd", b"rubbish" * 1000, BagError),
    ],
)
def test_what_is_no_bag_is_refused_in_one_line(name, content, error, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=name.split(".")[0]) as caught:
        Bag(path)
    assert "\n" not in str(caught.value)


def test_an_empty_directory_is_no_bag(tmp_path):
    with pytest.raises(ArgumentError, match=r"expected a bag \(metadata.yaml"):
        Bag(tmp_path)


def test_a_bag_of_another_robot_names_what_is_missing_and_what_is_there(tmp_path, rows):
    bag = recorded(tmp_path / "bag", [row for row in rows if row.topic != "/wrist/image_raw"])
    with pytest.raises(ArgumentError, match=r"expected /wrist/image_raw of the contract 'libero_sim'.*/agentview"):
        observations(bag)


def test_a_damaged_message_is_counted_and_the_next_one_is_read(tmp_path, rows):
    bag = tmp_path / "bag"
    with BagWriter(bag) as writer:
        for topic, kind in dict.fromkeys((r.topic, r.type) for r in rows):
            if not kind.startswith("foreign"):
                writer.add_topic(topic, kind)
        poses = 0
        for row in rows:
            if row.topic not in writer.counts:
                continue
            poses += row.topic == "/eef_pose"
            writer.write(row.topic, row.time, row.cdr[:20] if row.topic == "/eef_pose" and poses == 2 else row.cdr)
    shown, _, playback = observations(bag)
    assert len(shown) == 5
    assert dict(playback.damaged) == {"/eef_pose": 1}


def test_old_bags_without_definitions_hold_our_own_types_too(tmp_path, rows):
    path = pre_foxy(tmp_path / "bag", [*rows, chunk_row(rows[1].time - 1_000_000, np.zeros((8, 7), np.float32))])
    with Bag(path) as bag:
        assert len(read_recorded(bag, CONTRACT).chunks) == 1


def test_hundreds_of_foreign_types_are_not_looked_at(tmp_path, rows):
    path = pre_foxy(tmp_path / "bag", rows)
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO topics VALUES(?, ?, ?, 'cdr')",
            [(100 + i, f"/foreign{i}", f"foreign_msgs/msg/Type{i}") for i in range(300)],
        )
    connection.close()
    shown, damage, _ = observations(path)
    assert len(shown) == 6 and damage == []


def test_a_killed_recorder_left_its_latest_messages_in_the_write_ahead_log(tmp_path, rows):
    path = pre_foxy(tmp_path / "bag", rows[:-5])
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    ids = dict(connection.execute("SELECT name, id FROM topics").fetchall())
    connection.executemany(
        "INSERT INTO messages(topic_id, timestamp, data) VALUES(?, ?, ?)",
        [(ids[row.topic], row.time, row.cdr) for row in rows[-5:]],
    )
    connection.commit()
    copy = tmp_path / "copy"
    shutil.copytree(path.parent, copy)  # as the dead process leaves it: before SQLite folds the log into the file
    connection.close()
    assert (copy / "old.db3-wal").stat().st_size
    assert len(observations(copy / "old.db3")[0]) == 6
