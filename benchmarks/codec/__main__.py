"""Rate and distortion of the action codec on real LIBERO chunks, against its peers.

    .venv/bin/python -m benchmarks.codec --json out/codec.json
    .venv/bin/python -m benchmarks.codec --data DIR --json out/codec.json

Without --data it reads a committed sample of the scripted expert's demonstrations (benchmarks/codec/sample.py says how
it was made); DIR holds .hdf5 demonstrations of `rsd collect` or LIBERO's own. Every codec is fitted on every other
episode and measured on the rest. Prints tables, writes FILE and a plot beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from itertools import accumulate, count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.codec import peers
from benchmarks.codec.peers import Halves, Point
from benchmarks.codec.plot import plot
from benchmarks.codec.residual_fsq import residual_fsq
from benchmarks.codec.sample import SAMPLE, load_sample
from rsd_policy.codec import RFSQCodec
from rsd_policy.codec.measure import chunk_error, errors_per_level
from rsd_policy.codec.rfsq import BINS
from rsd_policy.commands.fit_codec import HORIZON, level_table
from rsd_policy.errors import RSDError, SetupError
from rsd_policy.evaluation import provenance
from rsd_policy.training.codec_data import read_actions, valid_chunks

MOST_CHUNKS = 20_000
"""Chunks used of each half; more change no figure and cost time."""

LEAST_REDUCTION = 1.6
COARSE_MM, COARSE_RAD = 5.0, 0.05
"""The bar: each level makes the RMS error at least so many times smaller; L0-L2 err by at most so much at p95."""

OURS = "RFSQ"
PEERS = {
    "uniform bins": ("uniform bins",),
    "ResidualFSQ": ("ResidualFSQ, steps", "ResidualFSQ, learned"),
    "DCT + rounding": ("DCT + rounding",),
}
"""Peer -> names of its points; of several settings the best counts."""

RATES = {"bits": "fixed rate", "coded": "entropy coded"}
"""What counts as a codec's bits a chunk: attribute of a point -> name."""

UNITS = {"mm": "rms_mm", "rad": "rms_rad", "all axes": "rms_units"}
"""Errors that are compared."""

JUDGED = "all axes"
"""The one of UNITS that a verdict against a peer is about. 0.1 action units are the tolerance of both, 5 mm and
0.05 rad: this is the error that the controller and the acceptance test see. The others are information."""

TIE = 0.02
"""Ratios of entropy-coded errors this near to 1 are ties: another training of the learned coder changes them as much
(docs/codec.md). At a fixed rate bits are counted, not learned, and there are no ties."""

EQUAL = 1e-3
"""Larger by less than this is equal: the same cells of two codecs differ in the last bits of their centres."""


def main(argv: list[str]) -> int:
    """Measure, print, write. Returns 0, 2 for wrong arguments or data, 3 when a package is missing."""
    parser = argparse.ArgumentParser(prog="benchmarks.codec", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="demonstrations (the committed sample)")
    parser.add_argument("--json", type=Path, default=Path("out/codec.json"), metavar="FILE", help="(%(default)s)")
    parser.add_argument("--without-residual-fsq", action="store_true", help="leave vector-quantize-pytorch out")
    arguments = parser.parse_args(argv)
    # Threads on tensors this small wait for each other longer than they compute.
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        episodes = read_actions(arguments.data) if arguments.data else load_sample()
        fit, test = (_thinned(valid_chunks(half, HORIZON)) for half in (episodes[0::2], episodes[1::2]))
        points = measure(Halves.of(fit, test), not arguments.without_residual_fsq)
    except RSDError as error:
        print(f"benchmarks.codec: {error}", file=sys.stderr)
        return 3 if isinstance(error, SetupError) else 2
    codec = RFSQCodec.fit(torch.from_numpy(fit))
    errors = errors_per_level(codec, test)
    still = chunk_error(np.zeros_like(test), test)
    source = str(arguments.data or SAMPLE.name)
    title = f"{OURS}: error per step on {len(test)} chunks, fitted to {len(fit)} chunks of other episodes ({source})"
    console.print(level_table(codec, errors, still, title))
    comparison = {rate: compare(points, rate) for rate in RATES}
    for rate, rows in comparison.items():
        console.print(comparison_table(rows, RATES[rate]))
    verdicts = judge(errors, still, comparison)
    for line, met in verdicts:
        console.print(f"[{'green' if met else 'red'}]{'met    ' if met else 'not met'}[/] {line}", highlight=False)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    picture = arguments.json.with_suffix(".png")
    plot(points, RATES, picture)
    result = {
        "data": {"source": source, "episodes": len(episodes), "fit_chunks": len(fit), "test_chunks": len(test)},
        "codec": codec.to_manifest(),
        "levels": [asdict(error) for error in errors],
        "no_motion": asdict(still),
        "points": [asdict(point) for point in points],
        "equal_bits": comparison,
        "verdicts": [{"bar": line, "met": met} for line, met in verdicts],
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {arguments.json} and {picture}")
    return 0


def measure(halves: Halves, with_residual_fsq: bool) -> list[Point]:
    """Points of every codec.

    Raises:
        SetupError: vector-quantize-pytorch is wanted and missing.
    """
    # As many as each prefix of levels has, and some between; 3 to reach down to the bits of L0 when entropy coded.
    counts = sorted({3, *accumulate(BINS, operator.mul), 8, 64, 256, 1024})
    jobs: list[Callable[[], list[Point]]] = [
        lambda: peers.coded(peers.rfsq(halves, BINS, OURS)),
        *(partial(_other_bins, halves, bins) for bins in (3, 5, 7)),
        lambda: peers.coded(peers.uniform(halves, tuple(counts))),
        lambda: peers.coded(peers.dct_rounding(halves)),
        lambda: peers.dct_rfsq(halves),
        lambda: peers.spline_rounding(halves, 6),
    ]
    if with_residual_fsq:
        jobs.insert(0, lambda: residual_fsq(halves))
    return [point for job in track(jobs, "measuring", console=Console(stderr=True)) for point in job()]


def _other_bins(halves: Halves, bins: int) -> list[Point]:
    """RFSQ with the same number of bins at every level, in the fewest levels that have as many cells as BINS."""
    levels = next(levels for levels in count(1) if bins**levels >= math.prod(BINS))
    return [setting.point for setting in peers.rfsq(halves, (bins,) * levels, f"RFSQ, {bins} bins")]


def compare(points: Sequence[Point], rate: str) -> list[dict[str, Any]]:
    """Each prefix of levels against every peer at the same number of bits.

    Args:
        rate: which of a point's rates counts.

    Returns:
        One row per prefix: levels, bits, and per codec the RMS errors of UNITS; a peer that is not measured at so few
        or so many bits has None.
    """
    rows = []
    for own in (point for point in points if point.codec == OURS):
        bits = getattr(own, rate)
        row: dict[str, Any] = {"levels": own.setting, "bits": bits}
        row[OURS] = {unit: getattr(own.error, name) for unit, name in UNITS.items()}
        for peer, names in PEERS.items():
            curves = [[p for p in points if p.codec == name] for name in names]
            row[peer] = {
                unit: min((e for c in curves if (e := _error_at(c, rate, name, bits)) is not None), default=None)
                for unit, name in UNITS.items()
            }
        rows.append(row)
    return rows


def comparison_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """RMS errors at equal bits; a peer's is bold where it is smaller."""
    table = Table(
        title=f"RMS error (mm, rad, all axes in action units) at equal bits a chunk: {title}", title_justify="left"
    )
    for heading in ("levels", "bits", OURS, *PEERS):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [row["levels"], f"{row['bits']:.0f}"]
        for codec in (OURS, *PEERS):
            texts = []
            for unit, digits in (("mm", 4), ("rad", 5), ("all axes", 5)):
                value = row[codec][unit]
                text = "-" if value is None else f"{value:.{digits}f}"
                texts.append(f"[bold]{text}[/]" if value is not None and value < row[OURS][unit] else text)
            cells.append("  ".join(texts))
        table.add_row(*cells)
    return table


def judge(errors: Sequence[Any], still: Any, comparison: dict[str, list[dict[str, Any]]]) -> list[tuple[str, bool]]:
    """The bars, each with whether it is met."""
    chain = [still, *errors]
    least = min(
        getattr(before, unit) / getattr(after, unit)
        for before, after in pairwise(chain)
        for unit in ("rms_mm", "rms_rad")
    )
    coarse = errors[2]
    verdicts = [
        (
            f"each level makes the RMS error at least {LEAST_REDUCTION} times smaller: least {least:.2f}",
            least >= LEAST_REDUCTION,
        ),
        (
            f"L0-L2 within {COARSE_MM:g} mm and {COARSE_RAD:g} rad a step at p95: "
            f"{coarse.p95_mm:.2f} mm, {coarse.p95_rad:.4f} rad",
            coarse.p95_mm <= COARSE_MM and coarse.p95_rad <= COARSE_RAD,
        ),
    ]
    for rate, rows in comparison.items():
        verdicts += [verdict for peer in PEERS if (verdict := _against(peer, rate, rows)) is not None]
    return verdicts


def _against(peer: str, rate: str, rows: Sequence[dict[str, Any]]) -> tuple[str, bool] | None:
    """The bar "at equal bits per chunk, error no worse" for one peer; None where it was not measured."""
    slack = TIE if rate == "coded" else 0.0
    parts, met = {}, False
    for unit in (JUDGED, *(other for other in UNITS if other != JUDGED)):
        ratios = {row["levels"]: row[OURS][unit] / row[peer][unit] for row in rows if row[peer][unit] is not None}
        if not ratios:
            return None
        ties = {levels: ratio for levels, ratio in ratios.items() if abs(ratio - 1.0) < slack}
        worse = {levels: ratio for levels, ratio in ratios.items() if ratio > 1.0 + EQUAL and levels not in ties}
        parts[unit] = f"{len(ratios) - len(worse)}/{len(ratios)}" + _places(worse=worse, tie=ties)
        if unit == JUDGED:
            met = not worse
    others = "".join(f"; {unit} alone {part}" for unit, part in parts.items() if unit != JUDGED)
    return f"{RATES[rate]}, no worse than {peer} over {JUDGED}: {parts[JUDGED]}{others}", met


def _places(**ratios: dict[str, float]) -> str:
    """' (worse at L0 x1.37; tie at L0-L1 x1.01)', or nothing."""
    texts = [
        f"{word} at " + ", ".join(f"{levels} x{ratio:.2f}" for levels, ratio in places.items())
        for word, places in ratios.items()
        if places
    ]
    return f" ({'; '.join(texts)})" if texts else ""


def _error_at(curve: Sequence[Point], rate: str, error: str, bits: float) -> float | None:
    """Error of a codec at a number of bits: its best points, joined by straight lines in log error."""
    best: list[tuple[float, float]] = []
    measured = [(getattr(point, rate), getattr(point.error, error)) for point in curve]
    measured = [(x, y) for x, y in measured if x is not None]
    for x, y in sorted(measured):
        if not best or y < best[-1][1]:
            best.append((x, y))
    # Equal up to rounding counts as equal.
    if not best or bits < best[0][0] - 1e-6 or bits > max(x for x, _ in measured) + 1e-6:
        return None
    x, y = zip(*best, strict=True)
    return float(np.exp(np.interp(bits, x, np.log(y))))


def _thinned(chunks: NDArray[np.float32]) -> NDArray[np.float32]:
    return chunks[:: -(-len(chunks) // MOST_CHUNKS)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
