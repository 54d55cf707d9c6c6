"""Results of an evaluation in DIR/episodes.sqlite: written once per finished episode, resumed by equal calls.

Tables: `run` (one row per call: arguments, versions, hardware), `episodes` (one row per episode; the executed actions
are a little-endian float32 blob [steps, 7]) and `chunks` (one row per inference). An episode and its chunks are written
in one transaction, so a process killed at any moment leaves whole episodes only.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import numpy as np

from rsd_policy.errors import ArgumentError, RSDError
from rsd_policy.evaluation.protocol import EpisodeSpec, EvalConfig
from rsd_policy.evaluation.results import ERROR, ChunkRecord, EpisodeResult
from rsd_policy.observation import ACTION_DIM

DATABASE = "episodes.sqlite"
FORMAT_VERSION = 1

_SCHEMA = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY, started TEXT NOT NULL, arguments TEXT NOT NULL, versions TEXT NOT NULL,
    hardware TEXT NOT NULL);
CREATE TABLE episodes (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES run(id),
    suite TEXT NOT NULL, task INTEGER NOT NULL, trial INTEGER NOT NULL, seed INTEGER NOT NULL,
    instruction TEXT NOT NULL, outcome TEXT NOT NULL CHECK (outcome IN ('success', 'failure', 'error')),
    steps INTEGER NOT NULL, actions BLOB NOT NULL, wall_s REAL NOT NULL, error TEXT, finished TEXT NOT NULL,
    UNIQUE (suite, task, trial, seed));
CREATE TABLE chunks (
    episode INTEGER NOT NULL REFERENCES episodes(id) ON DELETE CASCADE, chunk INTEGER NOT NULL,
    step INTEGER NOT NULL, inference_ms REAL NOT NULL, first_action_ms REAL NOT NULL, stage_ms TEXT NOT NULL,
    verified INTEGER NOT NULL, accepted INTEGER, skipped INTEGER NOT NULL, levels INTEGER NOT NULL,
    token_agreement TEXT NOT NULL, max_deviation TEXT NOT NULL, audited INTEGER NOT NULL, audit_deviated INTEGER,
    PRIMARY KEY (episode, chunk)) WITHOUT ROWID;
"""


class StoreError(RSDError):
    """A result directory cannot be used: not one, of another format, damaged, or in use by another process."""


class ResultStore:
    """The results in one directory. Use `open_run` to run episodes and `open_results` to read them."""

    def __init__(self, directory: Path, connection: sqlite3.Connection, lock: IO[str] | None = None) -> None:
        self.directory = directory
        self._db = connection
        self._lock = lock
        self._run_id = 0

    # -- opening and closing

    @classmethod
    def open_run(
        cls, directory: Path | str, config: EvalConfig, *, versions: dict[str, Any], hardware: dict[str, Any]
    ) -> ResultStore:
        """Begin a run in `directory`, or continue the one that is there.

        Raises:
            ArgumentError: the directory holds a run with other arguments, or other files; names the differences.
            StoreError: another process is running episodes into this directory, or the database is damaged.
        """
        directory = Path(directory)
        known = directory / DATABASE
        if directory.exists() and not known.exists():
            if not directory.is_dir():
                raise ArgumentError(f"{directory}: expected a directory for results, found a file")
            # What a killed first call may have left behind is ours; anything else is somebody's work.
            foreign = [p.name for p in directory.iterdir() if p.name not in (".lock", DATABASE + "-journal")]
            if foreign:
                raise ArgumentError(
                    f"{directory}: expected an empty or result directory, found {', '.join(sorted(foreign)[:3])}; "
                    "choose another --out"
                )
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise StoreError(
                f"{directory} is in use by another evaluation; wait for it or choose another --out"
            ) from error
        store = None
        try:
            store = cls(directory, _connect(known, create=True), lock)
            store._begin(config, versions, hardware)
        except BaseException:
            if store is not None:
                store.close()
            lock.close()
            raise
        return store

    @classmethod
    def open_results(cls, directory: Path | str) -> ResultStore:
        """Open results for reading, also while a run is writing.

        Raises:
            StoreError: there are none, or they are damaged or of another format.
        """
        directory = Path(directory)
        if not (directory / DATABASE).is_file():
            raise StoreError(f"{directory} holds no results: expected {DATABASE}, as written by `rsd eval --out`")
        store = cls(directory, _connect(directory / DATABASE, create=False))
        if store._one("SELECT count(*) FROM run")[0] == 0:
            store.close()
            raise StoreError(f"{directory}: the run was stopped before it began; start it again")
        return store

    def close(self) -> None:
        self._db.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing

    def record(self, result: EpisodeResult) -> None:
        """Keep a finished episode: all of it or, when the process dies here, nothing of it.

        A repeated episode replaces an error, never a finished one.

        Raises:
            StoreError: the episode is already finished, or was not asked for.
        """
        spec = result.spec
        if spec not in set(self.config.episodes()):
            raise StoreError(f"{spec} (seed {spec.seed}) is not an episode of this run")
        key = (spec.suite, spec.task, spec.trial, spec.seed)
        where = "suite = ? AND task = ? AND trial = ? AND seed = ?"
        with self._transaction():
            before = self._db.execute(f"SELECT outcome FROM episodes WHERE {where}", key).fetchone()
            if before is not None and before[0] != ERROR:
                raise StoreError(f"{spec} is already finished ({before[0]}); it is not overwritten")
            self._db.execute(f"DELETE FROM episodes WHERE {where}", key)
            cursor = self._db.execute(
                "INSERT INTO episodes (run, suite, task, trial, seed, instruction, outcome, steps, actions, wall_s,"
                " error, finished) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                (self._run_id, *key, result.instruction, result.outcome, result.steps,
                 result.actions.astype("<f4").tobytes(), result.wall_s, result.error, _now()),
            )  # fmt: skip
            self._db.executemany(
                "INSERT INTO chunks VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                [
                    (cursor.lastrowid, index, c.step, c.inference_ms, c.first_action_ms, json.dumps(c.stage_ms),
                     c.verified, c.accepted, c.skipped, c.levels, json.dumps(c.token_agreement),
                     json.dumps(c.max_deviation), c.audited, c.audit_deviated)
                    for index, c in enumerate(result.chunks)
                ],
            )  # fmt: skip

    # -- reading

    @property
    def config(self) -> EvalConfig:
        """What the run was asked for.

        Raises:
            StoreError: another release of rsd_policy wrote it, with arguments that this one does not know.
        """
        fields = json.loads(self._one("SELECT arguments FROM run ORDER BY id LIMIT 1")[0])
        try:
            return EvalConfig.from_json(fields)
        except (TypeError, KeyError, ArgumentError) as error:
            written_by = self.provenance()[0].get("rsd_policy", "unknown")
            raise StoreError(
                f"{self.directory}: written by rsd_policy {written_by}, whose arguments this release does not "
                f"understand ({error}); read it with that release, or choose another directory"
            ) from error

    def provenance(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Versions and hardware of the latest call that ran episodes."""
        row = self._one(
            "SELECT versions, hardware FROM run ORDER BY id IN (SELECT run FROM episodes) DESC, id DESC LIMIT 1"
        )
        return json.loads(row[0]), json.loads(row[1])

    def period(self) -> tuple[str, str | None]:
        """When the first call began and the last episode ended (ISO 8601, UTC); None before any episode."""
        started: str = self._one("SELECT started FROM run ORDER BY id LIMIT 1")[0]
        finished: str | None = self._one("SELECT max(finished) FROM episodes")[0]
        return started, finished

    def episodes(self) -> list[EpisodeResult]:
        """All recorded episodes (errors included) in the order of the protocol, with their chunks."""
        chunks: dict[int, list[ChunkRecord]] = {}
        for row in self._rows("SELECT * FROM chunks ORDER BY episode, chunk"):
            chunks.setdefault(row["episode"], []).append(_chunk(row))
        return [
            EpisodeResult(
                spec=EpisodeSpec(row["suite"], row["task"], row["trial"], row["seed"]),
                outcome=row["outcome"],
                steps=row["steps"],
                instruction=row["instruction"],
                actions=np.frombuffer(row["actions"], "<f4").reshape(-1, ACTION_DIM).astype(np.float32),
                chunks=tuple(chunks.get(row["id"], ())),
                wall_s=row["wall_s"],
                error=row["error"],
            )
            for row in self._rows("SELECT * FROM episodes ORDER BY suite, task, trial, seed")
        ]

    def pending(self) -> list[EpisodeSpec]:
        """Episodes still to be run: those without a result, and those that ended in an error."""
        finished = {
            EpisodeSpec(row["suite"], row["task"], row["trial"], row["seed"])
            for row in self._rows("SELECT suite, task, trial, seed FROM episodes WHERE outcome != 'error'")
        }
        return [spec for spec in self.config.episodes() if spec not in finished]

    # -- inside

    def _begin(self, config: EvalConfig, versions: dict[str, Any], hardware: dict[str, Any]) -> None:
        with self._transaction():
            if self._one("SELECT count(*) FROM run")[0]:
                differences = self.config.differences(config)
                if differences:
                    raise ArgumentError(
                        f"{self.directory} holds a run with other arguments (there / now): {'; '.join(differences)}. "
                        "Repeat its arguments or choose another --out"
                    )
            cursor = self._db.execute(
                "INSERT INTO run (started, arguments, versions, hardware) VALUES (?,?,?,?)",
                (_now(), json.dumps(config.to_json()), json.dumps(versions), json.dumps(hardware)),
            )
            self._run_id = int(cursor.lastrowid or 0)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _one(self, query: str) -> sqlite3.Row:
        row: sqlite3.Row = self._db.execute(query).fetchone()
        return row

    def _rows(self, query: str) -> Iterable[sqlite3.Row]:
        return self._db.execute(query)


def _connect(path: Path, *, create: bool) -> sqlite3.Connection:
    """Open the database; a journal left by a killed process is rolled back here, which is why reading opens it `rw`."""
    connection = sqlite3.connect(
        f"file:{_uri(path)}?mode={'rwc' if create else 'rw'}", uri=True, isolation_level=None, timeout=30.0
    )
    connection.row_factory = sqlite3.Row
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        if version == 0 and create and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {FORMAT_VERSION}; COMMIT;")
            version = FORMAT_VERSION
    except sqlite3.DatabaseError as error:
        connection.close()
        raise StoreError(f"{path} cannot be read as results ({error}); choose another directory") from error
    if version != FORMAT_VERSION:
        connection.close()
        raise StoreError(f"{path}: expected result format {FORMAT_VERSION}, got {version}; choose another directory")
    return connection


def _uri(path: Path) -> str:
    return path.resolve().as_uri().removeprefix("file://")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _chunk(row: sqlite3.Row) -> ChunkRecord:
    return ChunkRecord(
        step=row["step"],
        inference_ms=row["inference_ms"],
        first_action_ms=row["first_action_ms"],
        stage_ms=json.loads(row["stage_ms"]),
        verified=bool(row["verified"]),
        accepted=None if row["accepted"] is None else bool(row["accepted"]),
        skipped=bool(row["skipped"]),
        levels=row["levels"],
        token_agreement=tuple(json.loads(row["token_agreement"])),
        max_deviation=tuple(json.loads(row["max_deviation"])),
        audited=bool(row["audited"]),
        audit_deviated=None if row["audit_deviated"] is None else bool(row["audit_deviated"]),
    )
