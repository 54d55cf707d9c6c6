"""Small LeRobot datasets of both versions, written file by file as the format says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from scipy.spatial.transform import Rotation

EPISODES, LENGTH, FPS, SIDE, IDLE = 2, 30, 20, 32, 4
TASKS = ("pick up the red block", "open the drawer")
CAMERAS = ("observation.images.front", "observation.images.wrist")
STATE_NAMES = ["x", "y", "z", "a", "b", "c", "f1", "f2"]

DATA = {
    "v2.1": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "v3.0": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO = {
    "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


def level(episode: int, row: int) -> int:
    """Grey of a frame: another one for each row of the dataset."""
    return 4 * (episode * LENGTH + row)


def drive() -> tuple[np.ndarray, np.ndarray]:
    """States [N, 8] and actions [N, 7] of a hand that moves 5 mm along x and turns per row, and closes at row 15."""
    states, actions = np.zeros((LENGTH, 8)), np.zeros((LENGTH, 7))
    position, turn, finger = np.array([-0.2, 0.0, 1.0]), Rotation.from_rotvec([3.0, 0.0, 0.0]), 0.04
    for row in range(LENGTH):
        states[row] = [*position, *turn.as_rotvec(), finger, -finger]
        moves, closes = row >= IDLE, row >= LENGTH // 2
        actions[row] = [0.1 * moves, 0, 0, 0, 0, 0.04 * moves, 1 if closes else -1]
        if moves:
            position, turn = position + np.array([0.005, 0, 0]), Rotation.from_rotvec([0, 0, 0.02]) * turn
        finger = max(0.01, finger - 0.005) if closes else finger
    return states.astype(np.float32), actions.astype(np.float32)


def write_dataset(root: Path, version: str, *, video: bool, drop: int = 0, grip: float = 1.0) -> None:
    """Write a dataset; `drop`: frames that each video lacks at its end, `grip`: the sign of the gripper's column."""
    whole = version == "v2.1"
    features = {
        "observation.state": {"dtype": "float32", "shape": [8], "names": {"axes": STATE_NAMES}},
        "action": {"dtype": "float32", "shape": [7], "names": None},
        **{camera: {"dtype": "video" if video else "image", "shape": [SIDE, SIDE, 3]} for camera in CAMERAS},
        **{name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "task_index")},
    }
    info = {"codebase_version": version, "fps": FPS, "features": features, "chunks_size": 1000}
    info |= {"data_path": DATA[version], "video_path": VIDEO[version] if video else None}
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    tables = [_rows(episode, video, grip) for episode in range(EPISODES)]
    parts = [[episode] for episode in range(EPISODES)] if whole else [list(range(EPISODES))]
    for number, part in enumerate(parts):
        place = {"episode_chunk": 0, "episode_index": number} if whole else {"chunk_index": 0, "file_index": number}
        _parquet(root / DATA[version].format(**place), pa.concat_tables([tables[episode] for episode in part]))
        if video:
            levels = [level(episode, row) for episode in part for row in range(LENGTH)]
            for camera in CAMERAS:
                _video(root / VIDEO[version].format(video_key=camera, **place), levels[: len(levels) - drop])
    episodes = [{"episode_index": i, "tasks": [TASKS[i]], "length": LENGTH} for i in range(EPISODES)]
    if whole:
        _lines(root / "meta" / "episodes.jsonl", episodes)
        _lines(root / "meta" / "tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(TASKS)])
        return
    for i, row in enumerate(episodes):
        groups = ["data", *(f"videos/{camera}" for camera in CAMERAS)]
        row |= {f"{group}/{key}": 0 for group in groups for key in ("chunk_index", "file_index")}
        row |= {f"videos/{camera}/from_timestamp": i * LENGTH / FPS for camera in CAMERAS}
        row["stats/action/mean"] = [0.0] * 7
    _parquet(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", pa.Table.from_pylist(episodes))
    tasks = pa.table({"task_index": list(range(EPISODES)), "__index_level_0__": list(TASKS)})
    _parquet(root / "meta" / "tasks.parquet", tasks)


def _rows(episode: int, video: bool, grip: float) -> pa.Table:
    states, actions = drive()
    actions[:, 6] *= grip
    columns = {"observation.state": list(states), "action": list(actions), "frame_index": list(range(LENGTH))}
    columns |= {"episode_index": [episode] * LENGTH, "task_index": [episode] * LENGTH}
    if not video:
        pictures = [{"bytes": _png(level(episode, row)), "path": None} for row in range(LENGTH)]
        columns |= dict.fromkeys(CAMERAS, pictures)
    return pa.table(columns)


def _png(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), grey, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _video(path: Path, levels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        # key frames that are not where episodes begin, and frames that are stored in another order than shown
        stream = container.add_stream("libx264", rate=FPS, options={"g": "7", "bf": "2", "crf": "10"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for grey in levels:
            frame = av.VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def _lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
