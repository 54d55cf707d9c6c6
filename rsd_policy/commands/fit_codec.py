"""`rsd fit-codec`: fit the action codec to demonstrations and print what each level is worth."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rsd_policy.codec import RFSQCodec
from rsd_policy.codec.measure import ChunkError, chunk_error, errors_per_level
from rsd_policy.training.codec_data import read_actions, valid_chunks

HORIZON = 8
"""T, steps of a chunk."""


def main(argv: list[str]) -> int:
    """Parse arguments, fit, print the error per level, write the manifest entry `codec` of a checkpoint."""
    parser = argparse.ArgumentParser(prog="rsd fit-codec", description="Fit the action codec to demonstrations.")
    parser.add_argument(
        "--data", type=Path, default=Path("out/demos"), help="directory of demonstrations (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/codec-fit.json"), help="file to write (%(default)s)")
    arguments = parser.parse_args(argv)
    episodes = read_actions(arguments.data)
    codec = RFSQCodec.fit(torch.cat([torch.from_numpy(episode.actions) for episode in episodes]))
    chunks = valid_chunks(episodes, HORIZON)
    title = f"error per step on the {len(chunks)} chunks of {len(episodes)} episodes that the codec was fitted to"
    still = chunk_error(np.zeros_like(chunks), chunks)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(level_table(codec, errors_per_level(codec, chunks), still, title))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(codec.to_manifest(), indent=2) + "\n")
    print(f"wrote {arguments.out}")
    return 0


def level_table(codec: RFSQCodec, errors: Sequence[ChunkError], still: ChunkError, title: str) -> Table:
    """Error of each prefix of levels as a table.

    Args:
        errors: one for each prefix of levels. still: the error of not moving at all, what L0 is compared with.
        title: what was measured. The column `less` says how many times smaller the level made the RMS error.
    """
    table = Table(title=title, title_justify="left")
    for heading in ("levels", "bits a chunk", "mm rms", "p95", "max", "less", "rad rms", "p95", "max", "less"):
        table.add_column(heading, justify="right", no_wrap=True)
    for level, (bits, error) in enumerate(zip(codec.bits(HORIZON), errors, strict=True)):
        before = errors[level - 1] if level else still
        table.add_row(
            "L0" if level == 0 else f"L0-L{level}",
            f"{bits:.1f}",
            *(f"{value:.4f}" for value in (error.rms_mm, error.p95_mm, error.max_mm)),
            f"{before.rms_mm / error.rms_mm:.2f}",
            *(f"{value:.5f}" for value in (error.rms_rad, error.p95_rad, error.max_rad)),
            f"{before.rms_rad / error.rms_rad:.2f}",
        )
    return table
