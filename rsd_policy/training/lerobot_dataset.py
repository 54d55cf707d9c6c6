"""Reads LeRobot datasets of the formats v2.1 (one file per episode) and v3.0 (many episodes per file)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import BagError
from rsd_policy.robots.lerobot_columns import Columns

INFO = Path("meta") / "info.json"
VERSIONS = ("v2.1", "v3.0")


def is_lerobot_dataset(path: Path) -> bool:
    """Whether a folder has the description that every LeRobot dataset has."""
    return (path / INFO).is_file()


class LeRobotDataset:
    """A dataset on this disk.

    Attributes:
        fps: rows per second, as meta/info.json says.
        episodes: numbers of the episodes, in order.
    """

    def __init__(self, root: Path) -> None:
        """Read the description and the list of episodes.

        Raises:
            BagError: of another version, or incomplete.
        """
        self._root = root
        try:
            info = json.loads((root / INFO).read_text(encoding="utf-8"))
            version = str(info["codebase_version"])
            if version not in VERSIONS:
                raise BagError(
                    f"{root / INFO}: expected codebase_version {' or '.join(VERSIONS)}, got {version}; convert the "
                    "dataset with lerobot's own converters"
                )
            self._features: dict[str, Any] = info["features"]
            self._data_path, self._video_path = str(info["data_path"]), str(info.get("video_path") or "")
            self._chunks_size = int(info.get("chunks_size") or 1000)
            self.fps = float(info["fps"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BagError(f"{root / INFO}: expected the description of a LeRobot dataset: {error!r}") from error
        self._whole_files = version == "v2.1"
        self._episodes = {int(self._entry(row, "episode_index")): row for row in self._list("episodes")}
        self._tasks = {int(self._entry(row, "task_index")): _task_text(row) for row in self._list("tasks")}
        self.episodes = sorted(self._episodes)

    def instruction(self, episode: int) -> str:
        """What was to be done: the task of the episode's first row."""
        task = int(self._column(episode, "task_index")[0].as_py())
        if not self._tasks.get(task, "").strip():
            raise BagError(
                f"{self._root}: episode {episode} is of task {task}, of which meta/tasks has no text; "
                "give --instruction"
            )
        return self._tasks[task]

    def numbers(self, episode: int, feature: str, columns: Columns) -> NDArray[np.float64]:
        """Columns of a feature, [N, columns], one row per look.

        Raises:
            BagError: the feature or a column of it is not there.
        """
        try:
            values = np.array(self._column(episode, feature).to_pylist(), np.float64)
        except (TypeError, ValueError) as error:  # texts, or rows of several lengths
            raise BagError(f"{self._root}: feature '{feature}': expected numbers, {error}") from error
        if not np.isfinite(values).all():
            raise BagError(f"{self._root}: feature '{feature}' of episode {episode}: expected finite numbers")
        values = values.reshape(len(values), -1)
        indices = [self._index(feature, column, values.shape[1]) for column in columns]
        return values[:, indices]

    def images(self, episode: int, feature: str, count: int) -> Iterator[NDArray[np.uint8]]:
        """The images of a camera in an episode of `count` rows: uint8 [H, W, 3], RGB.

        Raises:
            BagError: an image is missing or cannot be decoded.
        """
        found = self._feature(feature)
        kind = found.get("dtype")
        if any((found.get("info") or {}).get(key) for key in ("is_depth_map", "video.is_depth_map")):
            raise BagError(f"{self._root}: feature '{feature}' is a depth image, without colours")
        if kind == "image":
            return self._stored_images(episode, feature)
        if kind == "video":
            return self._video(episode, feature, count)
        raise BagError(f"{self._root}: feature '{feature}': expected images or a video, got {kind}")

    def _feature(self, name: str) -> dict[str, Any]:
        if name not in self._features:
            raise BagError(
                f"{self._root}: has no feature '{name}', but {', '.join(self._features)}; correct the section "
                "'lerobot' of the contract"
            )
        found: dict[str, Any] = self._features[name]
        return found

    def _index(self, feature: str, column: int | str, size: int) -> int:
        names = _flat(self._feature(feature).get("names"))
        at = names.index(column) if column in names else column
        if not isinstance(at, int) or at >= size:
            raise BagError(
                f"{self._root}: feature '{feature}' has no column {column!r}: it has {size} columns"
                + (f" ({', '.join(map(str, names))})" if names else " without names")
            )
        return at

    def _list(self, name: str) -> list[dict[str, Any]]:
        """The rows of meta/NAME, whichever way the version writes them."""
        path = self._root / "meta" / name
        if self._whole_files:
            path = path.with_suffix(".jsonl")
            try:
                return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            except (OSError, ValueError) as error:
                raise BagError(f"{path}: cannot be read: {error}") from error
        files = sorted(path.glob("*/*.parquet")) if path.is_dir() else [path.with_suffix(".parquet")]
        rows: list[dict[str, Any]] = []
        for file in files:
            # statistics fill most of the table of episodes
            names = [column for column in _schema(file) if not column.startswith("stats/")]
            try:
                rows += _table(file, names).to_pylist()
            except ValueError as error:  # texts that are none
                raise BagError(f"{file}: cannot be read: {error}") from error
        return rows

    def _file(self, template: str, episode: int, group: str, **names: str) -> Path:
        """Where an episode's rows or images are; `group`: what the list of episodes calls them."""
        if self._whole_files:
            place = {"episode_chunk": episode // self._chunks_size, "episode_index": episode}
        else:
            row = self._episodes[episode]
            place = {key: int(self._entry(row, f"{group}/{key}")) for key in ("chunk_index", "file_index")}
        try:
            return self._root / template.format(**place, **names)
        except (KeyError, IndexError, ValueError) as error:
            raise BagError(f"{self._root / INFO}: path '{template}' is not of this version: {error!r}") from error

    def _entry(self, row: dict[str, Any], key: str) -> Any:
        if row.get(key) is None:
            raise BagError(f"{self._root / 'meta'}: an entry of episodes or tasks has no '{key}': {row}")
        return row[key]

    def _column(self, episode: int, name: str) -> Any:
        """A column of the episode's rows, in time."""
        self._feature(name)
        path = self._file(self._data_path, episode, "data")
        columns = [name, *(key for key in ("frame_index", "episode_index") if key != name)]
        table = _table(path, columns, [("episode_index", "=", episode)]).sort_by("frame_index")
        expected = int(self._entry(self._episodes[episode], "length"))
        if table["frame_index"].to_pylist() != list(range(expected)):
            raise BagError(f"{path}: expected {expected} rows of episode {episode}, got {len(table)}")
        return table[name]

    def _stored_images(self, episode: int, feature: str) -> Iterator[NDArray[np.uint8]]:
        import cv2

        for i, cell in enumerate(self._column(episode, feature)):
            stored = cell.as_py() or {}
            data = stored.get("bytes")
            if data is None and stored.get("path"):
                data = (self._root / stored["path"]).read_bytes()
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
            if image is None:
                raise BagError(f"{self._root}: image {i} of '{feature}' in episode {episode} cannot be decoded")
            yield np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)

    def _video(self, episode: int, feature: str, count: int) -> Iterator[NDArray[np.uint8]]:
        """Decode from the key frame before the episode on; a frame belongs to the row whose time it has."""
        import av

        path = self._file(self._video_path, episode, f"videos/{feature}", video_key=feature)
        start = 0.0
        if not self._whole_files:
            start = float(self._entry(self._episodes[episode], f"videos/{feature}/from_timestamp"))
        wanted = 0
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                assert stream.time_base is not None
                if start > 0.0:
                    container.seek(int(start / stream.time_base), stream=stream)
                for frame in container.decode(stream):
                    at = round((frame.time - start) * self.fps)
                    if at < wanted:
                        continue
                    if at > wanted or wanted == count:
                        break
                    yield frame.to_ndarray(format="rgb24")
                    wanted += 1
        except (OSError, ValueError, IndexError, av.error.FFmpegError) as error:
            raise BagError(f"{path}: cannot be decoded: {error}") from error
        if wanted < count:
            raise BagError(
                f"{path}: expected {count} frames of episode {episode} from {start:.3f} s on at {self.fps:g} Hz, got "
                f"none for row {wanted}"
            )


def _task_text(row: dict[str, Any]) -> str:
    """v3.0 has the text in the table's index, with or without a name."""
    return next((value for key, value in row.items() if key != "task_index" and isinstance(value, str)), "")


def _flat(names: Any) -> list[Any]:
    """Names of columns: a list, or a mapping of groups of them."""
    if isinstance(names, dict):
        names = list(names.values())
    if not isinstance(names, list):
        return []
    return [name for entry in names for name in (_flat(entry) if isinstance(entry, (list, dict)) else [entry])]


def _schema(path: Path) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        return list(parquet.read_schema(path).names)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise BagError(f"{path}: cannot be read: {error}") from error


def _table(path: Path, columns: Sequence[str], filters: Any = None) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path, columns=list(columns), filters=filters)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise BagError(f"{path}: cannot be read: {error}") from error
