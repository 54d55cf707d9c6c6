"""Which codec's tokens can a network predict? The same small network, trained on each, decoded greedily.

    .venv/bin/python -m benchmarks.codec.prediction --json out/codec-prediction.json

Rate and distortion say what tokens cost, not what a head that predicts all positions in parallel makes of them. The
network sees what was executed in the eight steps before, how far the arm has come, the task and the time, and
predicts the next chunk with the policy's own head (RFSQHead); it does not see the objects, so where and when a motion
ends is as uncertain to it as it is to a policy, or more. Every fourth episode is held out. Compared are the shipped
codec, as many levels of three bins on its grid (their L0-L3 have the cells of the shipped L0-L2), and as many levels of
three bins after a DCT over the horizon (codec_dct_levels).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.codec.dct_levels import DCTLevels
from benchmarks.codec.peers import prefix_name
from benchmarks.codec.sample import SAMPLE, load_sample
from rsd_policy.codec import RFSQCodec
from rsd_policy.codec.measure import ChunkError, chunk_error
from rsd_policy.codec.rfsq import BINS
from rsd_policy.commands.fit_codec import HORIZON
from rsd_policy.errors import RSDError
from rsd_policy.evaluation import provenance
from rsd_policy.heads import RFSQHead
from rsd_policy.observation import GRIPPER
from rsd_policy.training.codec_data import ActionEpisode, chunk_starts, read_actions

HELD_OUT_EVERY = 4
WIDTH = 64

THREE_BINS = (3,) * len(BINS)

PREFIXES = (3, 4, len(BINS))
"""Numbers of levels whose predictions are decoded: the draft's, those of three bins with the same cells, and all."""


@dataclass(frozen=True)
class TokenCodec:
    """A codec as the network sees it.

    Attributes:
        bins: of each level.
        tokens: int64 [8, N, 8, 7], labels of all chunks.
        carries: bool [8, 1, 8, 7], digits that are not the same for every chunk.
        decode: digits of a prefix -> actions [N, 8, 7].
    """

    name: str
    bins: tuple[int, ...]
    tokens: Tensor
    carries: Tensor
    decode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """Held-out figures of one training.

    Attributes:
        accuracy: per level, given the true digits before it, over digits that carry information.
        errors: of the greedily decoded levels, per prefix of PREFIXES by its name.
    """

    codec: str
    seed: int
    accuracy: list[float]
    errors: dict[str, ChunkError]


def main(argv: list[str]) -> int:
    """Train, print, write. Returns 0, or 2 for data that cannot be used."""
    parser = argparse.ArgumentParser(prog="benchmarks.codec.prediction", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="demonstrations (the committed sample)")
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="repetitions (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("out/codec-prediction.json"), help="(%(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        features, chunks, held_out = dataset(read_actions(arguments.data) if arguments.data else load_sample())
    except RSDError as error:
        print(f"benchmarks.codec.prediction: {error}", file=sys.stderr)
        return 2
    shipped = RFSQCodec.fit(chunks[torch.from_numpy(~held_out)])
    three_bins = RFSQCodec(shipped.scale, THREE_BINS, shipped.limit)
    codecs = [rfsq("RFSQ", shipped, chunks), rfsq("RFSQ, 3 bins", three_bins, chunks)]
    codecs.append(after_dct(three_bins, chunks, held_out))
    jobs = [(codec, seed) for codec in codecs for seed in range(arguments.seeds)]
    bar = track(jobs, "training", console=Console(stderr=True))
    outcomes = [train(codec, features, chunks, held_out, arguments.steps, seed) for codec, seed in bar]
    Console(width=None if sys.stdout.isatty() else 120).print(table(outcomes))
    result = {
        "data": {"source": str(arguments.data or SAMPLE.name), "chunks": len(chunks), "held_out": int(held_out.sum())},
        "steps": arguments.steps,
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {arguments.json}")
    return 0


def dataset(episodes: Sequence[ActionEpisode]) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
    """Features [N, F] float32 (standardised), chunks [N, 8, 7] float32, and which are held out [N]."""
    tasks = sorted({episode.task for episode in episodes})
    features, chunks, held_out = [], [], []
    for index, episode in enumerate(episodes):
        before = np.concatenate([np.zeros((HORIZON, 7)), episode.executed])
        travelled = np.concatenate([np.zeros((1, GRIPPER)), np.cumsum(episode.executed[:, :GRIPPER], axis=0)])
        task = np.eye(len(tasks))[tasks.index(episode.task)]
        for start in chunk_starts(episode, HORIZON):
            history = before[start : start + HORIZON].ravel()
            features.append(np.concatenate([history, travelled[start] / HORIZON, task, [start / 100.0]]))
            chunks.append(episode.actions[start : start + HORIZON])
            held_out.append(index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)
    x, test = np.array(features), np.array(held_out)
    x = (x - x[~test].mean(axis=0)) / (x[~test].std(axis=0) + 1e-3)
    return torch.from_numpy(x).float(), torch.from_numpy(np.array(chunks)), test


def rfsq(name: str, codec: RFSQCodec, chunks: Tensor) -> TokenCodec:
    """A fitted RFSQCodec and its labels."""
    carries = codec.carries[:, None, None, :].expand(-1, 1, HORIZON, -1)
    return TokenCodec(name, codec.bins, codec.encode(chunks), carries, codec.decode)


def after_dct(fitted: RFSQCodec, chunks: Tensor, held_out: NDArray[np.bool_]) -> TokenCodec:
    """DCTLevels on the arm, with the limits and the gripper of an RFSQCodec, fitted to what is not held out."""
    limit = fitted.limit.numpy()[:GRIPPER]
    unit = np.clip(chunks.numpy()[..., :GRIPPER] / limit, -1.0, 1.0)
    codec = DCTLevels(unit[~held_out], fitted.levels, fitted.bins[0])
    tokens = fitted.encode(chunks)
    tokens[..., :GRIPPER] = torch.from_numpy(codec.encode(unit))
    carries = fitted.carries[:, None, None, :].repeat(1, 1, HORIZON, 1)
    carries[..., :GRIPPER] = torch.from_numpy(codec.active)[:, None]

    def decode(digits: Tensor) -> Tensor:
        actions = fitted.decode(digits)
        arm = np.clip(codec.decode(digits[..., :GRIPPER].numpy()), -1.0, 1.0) * limit
        actions[..., :GRIPPER] = torch.from_numpy(arm).float()
        return actions

    return TokenCodec("DCT + RFSQ", fitted.bins, tokens, carries, decode)


class Predictor(nn.Module):
    """Features -> hidden states of eight slots -> RFSQHead."""

    def __init__(self, features: int, bins: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (features, 256):
            layers += [nn.Linear(width, 256), nn.GELU(), nn.Dropout(0.1)]
        self.trunk = nn.Sequential(*layers, nn.Linear(256, HORIZON * WIDTH))
        self.head = RFSQHead(WIDTH, HORIZON, HORIZON, WIDTH, num_layers=0, levels=len(bins), bins=bins, choice="mode")

    def hidden(self, features: Tensor) -> Tensor:
        """[B, F] -> [B, 8, WIDTH]."""
        slots: Tensor = self.trunk(features).view(-1, HORIZON, WIDTH)
        return slots


def train(
    codec: TokenCodec, features: Tensor, chunks: Tensor, held_out: NDArray[np.bool_], steps: int, seed: int
) -> Outcome:
    """Train on the cross-entropy of all levels alike, decode the held-out chunks greedily."""
    torch.manual_seed(seed)
    model = Predictor(features.shape[1], codec.bins)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
    )
    training = torch.from_numpy(np.flatnonzero(~held_out))
    for _ in range(steps):
        batch = training[torch.randint(len(training), (128,))]
        tokens = codec.tokens[:, batch]
        logits = model.head.teacher_forced_logits(model.hidden(features[batch]), tokens)
        loss = functional.cross_entropy(logits.flatten(0, 3), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    test = torch.from_numpy(np.flatnonzero(held_out))
    with torch.inference_mode():
        hidden = model.hidden(features[test])
        tokens = codec.tokens[:, test]
        right = (model.head.teacher_forced_logits(hidden, tokens).argmax(-1) == tokens) & codec.carries
        greedy, _ = model.head(hidden)
    count = codec.carries.sum(dim=(1, 2, 3)) * len(test)
    errors = {
        prefix_name(used): chunk_error(codec.decode(greedy[:used]).numpy(), chunks[test].numpy()) for used in PREFIXES
    }
    return Outcome(codec.name, seed, (right.sum(dim=(1, 2, 3)) / count).tolist(), errors)


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row per training and set of levels."""
    grid = Table(title="Held-out chunks, predicted and greedily decoded", title_justify="left")
    for heading in (
        "codec",
        "seed",
        "levels",
        "mm mean",
        "rms",
        "p95",
        "rad mean",
        "rms",
        "p95",
        "tokens right L0 L1 L2 L3",
    ):
        grid.add_column(heading, justify="right", no_wrap=True)
    for o in outcomes:
        right = "  ".join(f"{value:.3f}" for value in o.accuracy[:4])
        for name, e in o.errors.items():
            grid.add_row(
                o.codec,
                str(o.seed),
                name,
                *(f"{value:.2f}" for value in (e.mean_mm, e.rms_mm, e.p95_mm)),
                *(f"{value:.4f}" for value in (e.mean_rad, e.rms_rad, e.p95_rad)),
                right,
            )
            right = ""  # once for each training
    return grid


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
