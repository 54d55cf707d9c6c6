"""Finished episodes are never lost, never run twice, never half-written, and never mixed with another run's."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rsd_policy.errors import ArgumentError
from rsd_policy.evaluation.protocol import EpisodeSpec, EvalConfig
from rsd_policy.evaluation.results import ERROR, EpisodeResult
from rsd_policy.evaluation.store import DATABASE, ResultStore, StoreError

Make = Callable[..., EpisodeResult]
Open = Callable[..., ResultStore]


def test_what_was_recorded_is_read_back_exactly(config: EvalConfig, make_result: Make, open_run: Open) -> None:
    result = make_result(config.episodes()[0])
    with open_run(config) as store:
        store.record(result)
        directory = store.directory
    with ResultStore.open_results(directory) as store:
        (back,) = store.episodes()
        assert store.config == config
    assert back.actions.dtype == np.float32
    np.testing.assert_array_equal(back.actions, result.actions)
    assert replace(back, actions=result.actions) == replace(result, actions=result.actions)


def test_resuming_runs_only_what_is_missing(config: EvalConfig, make_result: Make, open_run: Open) -> None:
    first, second, *rest = config.episodes()
    with open_run(config) as store:
        store.record(make_result(first))
        store.record(EpisodeResult(second, ERROR, steps=0, error="boom"))
    with open_run(config) as store:
        assert store.pending() == [second, *rest]
        store.record(make_result(second, success=False))
        assert store.pending() == rest
        assert [e.outcome for e in store.episodes()] == ["success", "failure"]


def test_a_finished_episode_is_not_overwritten(config: EvalConfig, make_result: Make, open_run: Open) -> None:
    spec = config.episodes()[0]
    with open_run(config) as store:
        store.record(make_result(spec, success=True))
        with pytest.raises(StoreError, match="already finished"):
            store.record(make_result(spec, success=False))
        assert [e.outcome for e in store.episodes()] == ["success"]


def test_an_episode_of_another_run_is_refused(config: EvalConfig, make_result: Make, open_run: Open) -> None:
    with open_run(config) as store, pytest.raises(StoreError, match="not an episode of this run"):
        store.record(make_result(EpisodeSpec(config.suite, 0, 0, seed=5)))


def test_other_arguments_are_refused_by_name(config: EvalConfig, open_run: Open) -> None:
    open_run(config).close()
    with pytest.raises(ArgumentError, match="mode: 'speculative' / 'baseline'"):
        open_run(replace(config, mode="baseline"))
    open_run(config).close()


def test_a_directory_with_other_files_is_left_alone(config: EvalConfig, open_run: Open, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(ArgumentError, match=r"thesis\.tex"):
        open_run(config)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_two_runs_do_not_share_a_directory(config: EvalConfig, open_run: Open) -> None:
    with open_run(config), pytest.raises(StoreError, match="in use"):
        open_run(config)
    open_run(config).close()


def test_no_results_and_damaged_results_are_named(config: EvalConfig, open_run: Open, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no results"):
        ResultStore.open_results(tmp_path)
    (tmp_path / DATABASE).write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        ResultStore.open_results(tmp_path)
    newer = sqlite3.connect(tmp_path / "newer.sqlite")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    (tmp_path / "newer.sqlite").replace(tmp_path / DATABASE)
    with pytest.raises(StoreError, match="expected result format 1, got 99"):
        ResultStore.open_results(tmp_path)


def test_reading_works_while_a_run_is_writing(config: EvalConfig, make_result: Make, open_run: Open) -> None:
    with open_run(config) as writer:
        writer.record(make_result(config.episodes()[0]))
        with ResultStore.open_results(writer.directory) as reader:
            assert len(reader.episodes()) == 1
            writer.record(make_result(config.episodes()[1]))
            assert len(reader.episodes()) == 2


_WRITER = """
    import sys
    from pathlib import Path
    import numpy as np
    from rsd_policy.evaluation.protocol import EvalConfig
    from rsd_policy.evaluation.results import ChunkRecord, EpisodeResult
    from rsd_policy.evaluation.store import ResultStore

    config = EvalConfig(suite="libero_90", tasks=tuple(range(90)), trials=tuple(range(50)), ros=False)
    store = ResultStore.open_run(Path(sys.argv[1]), config, versions={}, hardware={})
    print("writing", flush=True)
    for spec in store.pending():
        rng = np.random.default_rng([spec.task, spec.trial])
        chunks = tuple(ChunkRecord(step=i, inference_ms=1.0, first_action_ms=1.0) for i in range(400))
        actions = rng.uniform(-1, 1, (400, 7)).astype(np.float32)
        store.record(EpisodeResult(spec, "success", 400, "x", actions, chunks))
"""


def test_killed_in_the_middle_of_writing_leaves_whole_episodes(tmp_path: Path) -> None:
    """SIGKILL at odd moments of a process that does nothing but write; every start continues where it stopped."""
    directory, recorded = tmp_path / "run", 0
    for round_ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_WRITER), str(directory)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == "writing"
        time.sleep(0.15 + 0.083 * round_)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        database = sqlite3.connect(directory / DATABASE)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        per_episode = database.execute(
            "SELECT count(c.chunk) FROM episodes e LEFT JOIN chunks c ON c.episode = e.id GROUP BY e.id"
        ).fetchall()
        orphans = database.execute("SELECT count(*) FROM chunks WHERE episode NOT IN (SELECT id FROM episodes)")
        assert orphans.fetchone() == (0,)
        database.close()
        assert set(per_episode) <= {(400,)}
        assert len(per_episode) >= recorded
        recorded = len(per_episode)
    assert recorded > 0
    with ResultStore.open_results(directory) as store:
        for episode in store.episodes():
            rng = np.random.default_rng([episode.spec.task, episode.spec.trial])
            np.testing.assert_array_equal(episode.actions, rng.uniform(-1, 1, (400, 7)).astype(np.float32))


def test_a_run_of_a_newer_release_is_named_as_such(config: EvalConfig, open_run: Open) -> None:
    """A field that this release does not know was a TypeError."""
    with open_run(config) as store:
        directory = store.directory
    with sqlite3.connect(directory / DATABASE) as database:
        database.execute("UPDATE run SET arguments = json_set(arguments, '$.camera_rate', 30)")
        database.execute("UPDATE run SET versions = json_set(versions, '$.rsd_policy', '9.0.0')")
    with (
        ResultStore.open_results(directory) as store,
        pytest.raises(StoreError, match=r"written by rsd_policy 9\.0\.0.*'camera_rate'"),
    ):
        _ = store.config
