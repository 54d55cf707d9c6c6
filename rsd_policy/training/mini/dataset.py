"""Demonstrations in memory: frames with the chunk of clean actions that follows each."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsd_policy.backbones.mini import WordTokenizer, resize_frame
from rsd_policy.errors import RSDError
from rsd_policy.observation import ACTION_DIM, state_of
from rsd_policy.training.mini.paraphrase import wordings
from sim_bridge.demonstrations import Demonstration, read_demonstrations
from sim_bridge.held_out import held_out_wordings

WORDINGS = 32
"""Wordings kept of each instruction."""


@dataclass
class Demonstrations:
    """N frames. All tensors but `wordings` share their first dimension.

    Attributes:
        images: uint8 [N, cameras, H, W, 3].
        proprio: float32 [N, 8 or 10].
        instruction: int64 [N], row of `wordings`.
        actions: float32 [N, T, 7], the expert's clean actions from this frame on.
        mask: bool [N, T], steps whose label is valid: up to the first step that was executed with noise (what the
            expert did after it answers to a state the frame does not show) and up to the end of the episode.
        weight: float64 [N], relative probability of being drawn in training.
        wordings: int64 [instructions, W, MAX_WORDS], tokenised wordings of each instruction, LIBERO's own first.
    """

    images: Tensor
    proprio: Tensor
    instruction: Tensor
    actions: Tensor
    mask: Tensor
    weight: Tensor
    wordings: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Demonstrations:
        """All tensors on a device."""
        return Demonstrations(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def part(self, start: int, stop: int) -> Demonstrations:
        """Frames start .. stop-1."""
        return self.rows(slice(start, stop))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows [count] drawn with replacement by their weight; the generator is of the frames' device."""
        cumulative = self.weight.cumsum(0)
        place = torch.rand(count, generator=generator, device=cumulative.device, dtype=cumulative.dtype)
        return torch.searchsorted(cumulative, place * cumulative[-1]).clamp(max=len(self) - 1)

    def rows(self, index: Tensor | slice) -> Demonstrations:
        """The frames of some rows."""
        chosen = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "wordings"}
        return Demonstrations(**chosen, wordings=self.wordings)

    def words(self) -> Tensor:
        """The frames' instructions in LIBERO's own words: int64 [N, MAX_WORDS]."""
        return self.wordings[self.instruction, 0]

    def reworded(self, generator: torch.Generator) -> Tensor:
        """As `words`, but half of the frames, drawn at random on the frames' device, in another wording."""
        device = self.instruction.device
        own = torch.rand(len(self), generator=generator, device=device) < 0.5
        other = torch.randint(self.wordings.shape[1], (len(self),), generator=generator, device=device)
        return self.wordings[self.instruction, torch.where(own, 0, other)]


def load_demonstrations(
    directory: Path, held_out: float, image_size: int, share: tuple[int, int] = (0, 1)
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Successful demonstrations of a directory, split by episode.

    Args:
        directory: of files of `rsd collect` or of others, as `read_demonstrations` reads them.
        held_out: fraction of episodes kept for validation, the same ones on every call.
        image_size: edge of the images, px; those of another size are resized as the policy's input is.
        share: the part that is loaded, see `read_demonstrations`.

    Returns:
        training and held-out episodes.
    """
    processes = min(16, os.cpu_count() or 1)
    read = (_resized(e, image_size) for e in read_demonstrations(directory, processes, share))
    episodes = sorted(read, key=lambda e: (e.suite, e.task, e.seed))
    if not episodes:
        of = "" if share[1] == 1 else f" in part {share[0]} of {share[1]}"
        raise RSDError(f"{directory}: expected demonstrations written by `rsd collect`, found none{of}")
    chosen = held_out_rows([f"{e.suite} {e.task} {e.seed}" for e in episodes], held_out)
    return [e for i, e in enumerate(episodes) if i not in chosen], [episodes[i] for i in sorted(chosen)]


def _resized(episode: Demonstration, image_size: int) -> Demonstration:
    frames, cameras, *size, channels = episode.images.shape
    if size == [image_size, image_size]:
        return episode
    images = np.empty((frames, cameras, image_size, image_size, channels), dtype=np.uint8)
    for row, camera in np.ndindex(frames, cameras):
        images[row, camera] = resize_frame(episode.images[row, camera], image_size)
    return replace(episode, images=images)


def held_out_rows(names: Sequence[str], fraction: float) -> set[int]:
    """Which episodes are kept for validation: those whose name's checksum is small, but always at least one.

    An episode stays on its side when others are added, so that a training resumed with more demonstrations is never
    validated on what it has been trained on.
    """
    share = [zlib.crc32(name.encode()) / 2**32 for name in names]
    return {i for i, value in enumerate(share) if value < fraction} or {int(np.argmin(share))}


def to_frames(
    episodes: Sequence[Demonstration],
    tokenizer: WordTokenizer,
    horizon: int,
    task_weights: dict[tuple[str, int], float] | None = None,
    state: str = "axis_angle",
) -> Demonstrations:
    """Stack episodes into frames.

    Args:
        task_weights: (suite, task) -> relative weight; every task has 1 unless named. A task's weight is shared among
            its frames, so tasks with longer or more episodes are not drawn more often.
        state: form of the robot's state, one of `STATES`.
    """
    if not episodes:
        raise RSDError("training: expected at least one episode, got none; collect more demonstrations")
    count = sum(len(e.frame_steps) for e in episodes)
    images = np.empty((count, *episodes[0].images.shape[1:]), dtype=np.uint8)
    proprio, actions, masks = [], [], []
    instructions = sorted({e.instruction for e in episodes})
    index_of = {text: index for index, text in enumerate(instructions)}
    instruction: list[int] = []
    keys: list[tuple[str, int]] = []
    row = 0
    for e in episodes:
        images[row : row + len(e.images)] = e.images
        row += len(e.images)
        chunk, valid = label_chunks(e, horizon)
        actions.append(chunk)
        masks.append(valid)
        proprio.append(state_of(e, state))
        instruction += [index_of[e.instruction]] * len(e.images)
        keys += [(e.suite, e.task)] * len(e.images)
    frames_per_task = Counter(keys)
    weights = task_weights or {}
    weight = np.array([weights.get(key, 1.0) / frames_per_task[key] for key in keys])
    return Demonstrations(
        images=torch.from_numpy(images),
        proprio=torch.from_numpy(np.concatenate(proprio).astype(np.float32)),
        instruction=torch.tensor(instruction, dtype=torch.int64),
        actions=torch.from_numpy(np.concatenate(actions).astype(np.float32)),
        mask=torch.from_numpy(np.concatenate(masks)),
        weight=torch.from_numpy((weight / weight.sum()).astype(np.float64)),
        wordings=torch.tensor(
            [[tokenizer(w) for w in wordings(text, WORDINGS, 0, held_out_wordings())] for text in instructions]
        ),
    )


def label_chunks(episode: Demonstration, horizon: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The chunk of clean actions [F, T, 7] that follows each frame of an episode, and which steps [F, T] are valid."""
    steps = len(episode.actions)
    index = episode.frame_steps[:, None] + np.arange(horizon)[None, :]
    inside = index < steps
    clipped = np.minimum(index, steps - 1)
    # Valid up to and including the first noisy step: its label was computed before the noise acted.
    noisy_before = np.cumsum(episode.noisy[clipped], axis=1) - episode.noisy[clipped]
    chunk = episode.actions[clipped].astype(np.float32)
    chunk[~inside, : ACTION_DIM - 1] = 0.0
    return chunk, inside & (noisy_before == 0)
