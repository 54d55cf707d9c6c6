"""Hidden states of a frozen backbone over demonstrations, on disk: what `rsd train-heads` trains on.

One safetensors file an episode, written whole or not at all, so that an interrupted extraction goes on where it
stopped. The states are what the backbone gives in inference, in its own precision. A failed extraction is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsd_policy.backbones.base import Backbone, hidden_states
from rsd_policy.backbones.mini import CAMERAS
from rsd_policy.errors import NonFiniteError, RSDError
from rsd_policy.files import whole_file, write_json
from rsd_policy.observation import Observation
from rsd_policy.training.mini.dataset import label_chunks
from rsd_policy.training.mini.validate import HiddenBatch
from sim_bridge.demonstrations import Demonstration

SOURCE = "source.json"


@dataclass(frozen=True)
class Source:
    """What the states in a directory come from; states of another source are never mixed with them.

    Attributes:
        policy: name and digest of the policy whose backbone ran.
        exit_layer: k; the early states are those after layer k-1.
        every: every how many frames one was taken.
    """

    policy: str
    exit_layer: int
    every: int

    def claim(self, directory: Path) -> None:
        """Make the directory one for states of this source.

        Raises:
            RSDError: it holds states of another source.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / SOURCE
        wanted = json.loads(json.dumps(asdict(self)))
        if path.is_file():
            found = json.loads(path.read_text())
            if found != wanted:
                raise RSDError(
                    f"{directory}: expected hidden states of {wanted}, got those of {found}; "
                    "choose another --work directory or remove this one"
                )
        else:
            write_json(path, wanted)


def episode_key(episode: Demonstration) -> str:
    """File name of an episode's states, without suffix; sorts as `load_demonstrations` sorts episodes."""
    return f"{episode.suite}-task{episode.task:02d}-seed{episode.seed:08d}"


def extract_episode(
    backbone: Backbone,
    episode: Demonstration,
    source: Source,
    directory: Path,
    device: torch.device,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Path:
    """Run the backbone over an episode's frames and write its states; an intact file of the same episode is kept.

    Args:
        backbone: on `device`, in evaluation mode.
        directory: claimed for `source`.
        advance: called with the number of frames done since the last call.

    Raises:
        NonFiniteError: the backbone gave NaN or infinity.
        ObservationError: the backbone cannot read these frames.
        RSDError: the states have another shape than the backbone announces.
    """
    path = directory / f"{episode_key(episode)}.safetensors"
    digest = _digest(episode)
    rows = np.arange(0, len(episode.images), source.every)
    if _holds(path, digest):
        advance(len(rows))
        return path
    early: list[Tensor] = []
    late: list[Tensor] = []
    for start in range(0, len(rows), batch_size):
        batch = [_observation(episode, row) for row in rows[start : start + batch_size]]
        for states, part in zip(_states(backbone, batch, source.exit_layer), (early, late), strict=True):
            _check(states, len(batch), backbone, episode)
            part.append(states.cpu())
        advance(len(batch))
    actions, mask = label_chunks(episode, backbone.horizon)
    tensors = {
        "early": torch.cat(early),
        "late": torch.cat(late),
        "actions": torch.from_numpy(actions[rows]),
        "mask": torch.from_numpy(mask[rows]),
    }
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={"episode": digest})
    return path


class HiddenStates:
    """Frames of several files as one sequence. Files are mapped into memory, not read: they may exceed it.

    Args:
        paths: written by `extract_episode`.

    Raises:
        RSDError: no file, or none with a frame.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [load_file(path) for path in paths]
        self._starts = np.cumsum([0, *(len(file["early"]) for file in self._files)])
        if not len(self):
            raise RSDError(f"training heads: expected frames, got none in {len(paths)} episodes; collect more")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, rows: Tensor, device: torch.device) -> HiddenBatch:
        """Frames by number, int64 [B]."""
        files = np.searchsorted(self._starts, rows.numpy(), side="right") - 1
        offsets = rows.numpy() - self._starts[files]

        def gather(key: str) -> Tensor:
            return torch.stack([self._files[f][key][o] for f, o in zip(files, offsets, strict=True)]).to(device)

        return HiddenBatch(gather("early"), gather("late"), gather("actions"), gather("mask"))

    def all_actions(self) -> Tensor:
        """Every valid true action, float32 [M, 7]; chunks overlap, so most appear more than once."""
        return torch.cat([file["actions"][file["mask"]] for file in self._files])


@torch.inference_mode()
def _states(backbone: Backbone, batch: list[Observation], exit_layer: int) -> tuple[Tensor, Tensor]:
    early, late = hidden_states(backbone, backbone.preprocess(batch), exit_layer)
    return early.clone(), late.clone()  # both may be views of a sequence that is many times as large


def _observation(episode: Demonstration, row: int) -> Observation:
    images = dict(zip(CAMERAS, episode.images[row], strict=True))
    pose = None if episode.pose is None else episode.pose[row]
    return Observation(images, episode.proprio[row], episode.instruction, pose=pose)


def _check(states: Tensor, count: int, backbone: Backbone, episode: Demonstration) -> None:
    expected = (count, backbone.slots, backbone.hidden_size)
    if states.shape != expected:
        raise RSDError(f"extraction of {episode_key(episode)}: expected {list(expected)}, got {list(states.shape)}")
    if not bool(torch.isfinite(states).all()):
        raise NonFiniteError(
            f"extraction of {episode_key(episode)}: the backbone gave NaN or infinity; check the checkpoint with "
            "`./rsd doctor`"
        )


def _digest(episode: Demonstration) -> str:
    digest = hashlib.sha256(episode.instruction.encode())
    for array in (episode.images, episode.frame_steps, episode.proprio, episode.actions, episode.noisy):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _holds(path: Path, digest: str) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("episode") == digest
    except (SafetensorError, OSError) as error:
        raise RSDError(f"{path}: expected hidden states: {error}; remove the file and run again") from error
