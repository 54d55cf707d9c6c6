"""What a recorder cannot keep is counted, and what it has kept can be read."""

from __future__ import annotations

import resource
import signal

import pytest
from rosbags.highlevel import AnyReader

from rsd_policy.bags.reader import Bag
from rsd_policy.bags.recording import Recording
from rsd_policy.errors import ArgumentError, BagError
from tests.bags.synthetic import recorded, robot

IMAGE = "/agentview/image_raw"


def test_a_queue_that_is_full_loses_messages_and_counts_them(tmp_path):
    recording = Recording(tmp_path / "bag", {}, queue_bytes=10_000)
    recording.add_topic(IMAGE, "sensor_msgs/msg/Image")
    rows = [row for row in robot(40) if row.topic == IMAGE]
    with recording._ready:  # the disk stands still
        for row in rows:
            recording.put(row.topic, row.time, row.cdr)
    recording.close()
    assert recording.lost[IMAGE] > 0
    assert recording.counts[IMAGE] + recording.lost[IMAGE] == len(rows)
    with Bag(tmp_path / "bag") as bag:
        assert len(list(bag.messages([IMAGE]))) == recording.counts[IMAGE]


def test_a_full_disk_ends_the_bag_with_a_message_and_a_count(tmp_path):
    """A limit on the size of files stands for the disk: the kernel refuses the write in the same place."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    recording = Recording(tmp_path / "bag", {})
    recording.add_topic(IMAGE, "sensor_msgs/msg/Image")
    rows = [row for row in robot(12, size=400) if row.topic == IMAGE]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, before[1]))
    try:
        for row in rows:
            recording.put(row.topic, row.time, row.cdr)
        with pytest.raises(BagError, match=r"bag: File too large; the bag ends there, \d+ messages lost"):
            recording.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert recording.lost[IMAGE] > 0
    with Bag(tmp_path / "bag") as bag:
        assert 0 < len(list(bag.messages([IMAGE]))) < len(rows)


def test_a_recording_is_never_overwritten(tmp_path):
    Recording(tmp_path / "bag", {}).close()
    with pytest.raises(ArgumentError, match="never overwritten"):
        Recording(tmp_path / "bag", {})


def test_what_is_written_is_a_rosbag2_that_another_reader_takes(tmp_path):
    """rosbags' own reader goes by metadata.yaml, the index, and the types' hashes."""
    rows = robot(3, foreign=False)
    with AnyReader([recorded(tmp_path / "bag", rows)]) as reader:
        assert reader.message_count == len(rows)
        found = [(c.topic, time, bytes(raw)) for c, time, raw in reader.messages()]
        assert {(t, d) for t, _, d in found} == {(row.topic, row.cdr) for row in rows}
        assert reader.deserialize(found[-1][2], "sensor_msgs/msg/JointState").position.tolist() == [0.04, -0.04]
