"""The codec's study: its estimates of bits are right where the answer is known, and it runs on a stranger's data."""

from __future__ import annotations

import builtins
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from benchmarks import codec_peers
from benchmarks.codec import compare, main
from benchmarks.codec_dct_levels import DCTLevels
from benchmarks.codec_entropy import cross_entropy
from benchmarks.codec_peers import Halves, Point, rfsq, uniform
from rsd_policy.codec.measure import ChunkError


def drawn(count: int, cells: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, cells, (count, 8, 2))


@pytest.mark.parametrize("cells", [2, 3, 9, 20])
def test_equally_likely_symbols_cost_their_logarithm(cells: int) -> None:
    bits = cross_entropy(drawn(20000, cells, 0), drawn(5000, cells, 1), np.full((8, 2), cells), given_previous=False)
    assert bits == pytest.approx(16 * math.log2(cells), rel=0.01)


def test_symbols_that_never_change_cost_nothing() -> None:
    still = np.full((20000, 8, 2), 4)
    assert cross_entropy(still, still[:100], np.full((8, 2), 9), given_previous=False) < 0.01
    assert cross_entropy(still, still, np.ones((8, 2), dtype=int), given_previous=False) == 0.0


def test_a_repeated_symbol_costs_only_its_first_step_when_the_step_before_is_given() -> None:
    fit, test = (np.repeat(drawn(20000, 9, seed)[:, :1], 8, axis=1) for seed in (0, 1))
    cells = np.full((8, 2), 9)
    assert cross_entropy(fit, test, cells, given_previous=True) == pytest.approx(2 * math.log2(9), rel=0.02)
    assert cross_entropy(fit, test, cells, given_previous=False) == pytest.approx(16 * math.log2(9), rel=0.01)


def chunks(count: int, seed: int) -> np.ndarray:
    """Smooth chunks of which some saturate, [count, 8, 7] in [-1, 1]."""
    generator = np.random.default_rng(seed)
    start, slope = generator.uniform(-1.3, 1.3, (count, 1, 7)), generator.normal(0, 0.05, (count, 1, 7))
    values = np.clip(start + slope * np.arange(8)[None, :, None], -1, 1).astype(np.float32)
    values[..., 6] = np.sign(values[..., 6])
    return values


def test_every_prefix_of_the_dct_levels_errs_less_and_quiet_digits_say_nothing() -> None:
    unit = chunks(500, 0)[..., :6].astype(np.float64)
    codec = DCTLevels(unit)
    tokens = codec.encode(unit)
    errors = [np.sqrt(((codec.decode(tokens[:used]) - unit) ** 2).mean()) for used in range(1, 9)]
    assert all(after < before / 1.6 for before, after in pairwise(errors))
    quiet = ~np.broadcast_to(codec.active[:, None], tokens.shape)
    assert quiet[0].any() and (tokens[quiet] == codec.half).all()


def test_uniform_bins_as_many_as_cells_take_the_same_bits_as_rfsq() -> None:
    halves = Halves.of(chunks(300, 0), chunks(300, 1))
    for own, peer in zip(rfsq(halves, 3, 4, "RFSQ"), uniform(halves, (3, 9, 27, 81)), strict=True):
        assert own.bits == pytest.approx(peer.bits)
    assert own.bits == pytest.approx(8 + 48 * math.log2(81))


def point(codec: str, bits: float, error: float) -> Point:
    errors = ChunkError(*(error for _ in ChunkError.__dataclass_fields__))
    return Point(codec, "", bits, bits, bits, errors)


def test_errors_are_compared_at_equal_bits() -> None:
    """Between two settings of a peer its error is interpolated in the logarithm; beyond them nothing is claimed."""
    peer = [point("uniform bins", 100, 1.0), point("uniform bins", 200, 0.01)]
    rows = compare([point("RFSQ", 150, 0.2), point("RFSQ", 300, 0.001), *peer], "bits")
    assert rows[0]["uniform bins"]["mm"] == pytest.approx(0.1)
    assert rows[1]["uniform bins"]["mm"] is None


def test_it_runs_on_demonstrations_of_liberos_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_peers, "ROUNDING_STEPS", (0.5, 0.05, 0.005))  # of 26, for time
    with h5py.File(tmp_path / "task_demo.hdf5", "w") as file:
        for index, chunk in enumerate(chunks(6, 2)):
            file[f"data/demo_{index}/actions"] = np.repeat(chunk, 3, axis=0)
    out = tmp_path / "out" / "codec.json"
    assert main(["--data", str(tmp_path), "--json", str(out), "--without-residual-fsq"]) == 0
    result = json.loads(out.read_text())
    assert result["data"]["episodes"] == 6 and len(result["levels"]) == 8
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_a_missing_peer_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("vector_quantize_pytorch"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["--json", str(tmp_path / "codec.json")]) == 3
    message = capsys.readouterr().err
    assert "pip install" in message and "--without-residual-fsq" in message


def test_an_empty_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--json", str(tmp_path / "codec.json")]) == 2
    assert "found none" in capsys.readouterr().err
