"""`rsd view` of results: every episode is there, and its path is what the actions asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rsd_policy.commands.view import main
from rsd_policy.evaluation.in_process.video import video_path
from rsd_policy.evaluation.store import StoreError
from rsd_policy.reports.view import executed_path


def test_a_path_begins_at_the_origin_and_goes_as_far_as_the_actions_say():
    actions = np.zeros((3, 7), np.float32)
    actions[:, 1] = [1.0, -0.5, 1.0]
    path = executed_path(actions, translation_m=0.05)
    assert np.allclose(path, [[0, 0, 0], [0, 0.05, 0], [0, 0.025, 0], [0, 0.075, 0]])


def test_every_episode_of_a_run_is_written_for_rerun(tmp_path, config, make_result, open_run, capsys):
    rerun = pytest.importorskip("rerun")
    with open_run(config) as store:
        for spec in config.episodes():
            store.record(make_result(spec, success=spec.trial == 0))
        directory = store.directory
    video(video_path(directory, config.episodes()[0]))
    assert main([str(directory), "--save", str(tmp_path / "run.rrd")]) == 0
    assert "4 episodes" in capsys.readouterr().out
    written = (tmp_path / "run.rrd").read_bytes()
    for spec in config.episodes():
        assert f"{spec.suite}/task{spec.task:02d}-trial{spec.trial:02d}/executed/0008".encode() in written
    assert written.count(b"trial00/video") and not written.count(b"trial01/video"), rerun.__version__


def test_results_that_cannot_be_read_are_said_so(tmp_path):
    (tmp_path / "episodes.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="cannot be read as results"):
        main([str(tmp_path), "--save", str(tmp_path / "run.rrd")])


def video(path: Path) -> None:
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for grey in (0, 100, 200):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
