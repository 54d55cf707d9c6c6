"""The codec's study: its estimates of bits are right where the answer is known, and it runs on a stranger's data."""

from __future__ import annotations

import builtins
import json
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from benchmarks import codec_coder, codec_peers
from benchmarks.codec import compare, main
from benchmarks.codec_coder import ContextCoder, Symbols, coded_bits, regression
from benchmarks.codec_dct_levels import DCTLevels
from benchmarks.codec_peers import Halves, Point, rfsq, uniform
from benchmarks.codec_residual_fsq import residual_fsq
from rsd_policy.codec.measure import ChunkError


def drawn(count: int, cells: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, cells, (count, 8, 2))


def symbols(fit: np.ndarray, test: np.ndarray, cells: int) -> Symbols:
    return Symbols(fit, test, np.full(fit.shape[1:], cells), np.full(fit.shape[1:], 2.0 / cells))


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_coder, "STEPS", 150)


@pytest.mark.usefixtures("short_training")
def test_equally_likely_symbols_cost_their_logarithm() -> None:
    rates = [symbols(drawn(2000, cells, 0), drawn(500, cells, 1), cells) for cells in (2, 9, 20)]
    for bits, cells in zip(coded_bits(rates), (2, 9, 20), strict=True):
        assert bits == pytest.approx(16 * math.log2(cells), rel=0.03)
        # No coder does better than chance on average: it would see what it is to predict.
        assert bits > 16 * math.log2(cells) * 0.99


@pytest.mark.usefixtures("short_training")
def test_a_repeated_symbol_costs_only_its_first_step_and_one_of_a_single_value_nothing() -> None:
    fit, test = (np.repeat(drawn(2000, 9, seed)[:, :1], 8, axis=1) for seed in (0, 1))
    one_value = Symbols(fit * 0, test * 0, np.ones((8, 2), dtype=int), np.ones((8, 2)))
    repeated, still = coded_bits([symbols(fit, test, 9), one_value])
    assert 2 * math.log2(9) * 0.98 < repeated < 2 * math.log2(9) * 1.25
    assert still == 0.0


def test_symbols_outside_their_cells_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 \.\. cells - 1"):
        symbols(drawn(10, 3, 0), drawn(10, 4, 1) + 1, 3)


def arithmetic_coded(length: int, distribution: Callable[[list[int]], list[Fraction]], given: list[int] | str) -> Any:
    """Symbols to a string of bits by exact interval arithmetic, or such a string to its symbols."""
    target = Fraction(int(given, 2), 2 ** len(given)) if isinstance(given, str) else None
    low, width = Fraction(0), Fraction(1)
    decoded: list[int] = []
    for place in range(length):
        masses = distribution(decoded)
        edges = [low + width * sum(masses[:k], Fraction(0)) for k in range(len(masses) + 1)]
        symbol = int(given[place]) if target is None else max(k for k in range(len(masses)) if edges[k] <= target)
        low, width = edges[symbol], edges[symbol + 1] - edges[symbol]
        decoded.append(symbol)
    if target is not None:
        return decoded
    count = math.ceil(-math.log2(width)) + 1
    return format(math.ceil(low * 2**count), f"0{count}b")


def test_bits_are_those_of_an_arithmetic_coder_that_knows_earlier_symbols_only() -> None:
    """Coded and decoded symbol after symbol; the probabilities of a symbol sum to 1."""
    torch.manual_seed(3)
    horizon, axes, cells, step = 4, 2, 5, 0.4
    coder = ContextCoder(horizon, axes).eval()
    with torch.no_grad():
        coder.last.weight.normal_(0.0, 0.1)
    fit = np.random.default_rng(0).integers(0, cells, (200, horizon, axes)).cumsum(axis=1) % cells
    rate = Symbols(fit, fit, np.full((horizon, axes), cells), np.full((horizon, axes), step))

    def bits(chunks: np.ndarray) -> np.ndarray:
        values = rate.values(chunks)
        constants = (torch.full(values.shape, x) for x in (step, step * (cells - 1) / 2))
        guesses = regression(rate.values(fit), values)
        with torch.inference_mode():
            return coder(*(torch.from_numpy(x).float() for x in (values, guesses)), *constants).numpy().reshape(-1, 8)

    def distribution(known: list[int]) -> list[Fraction]:
        rest = horizon * axes - len(known) - 1
        rows = np.array([[*known, symbol, *[0] * rest] for symbol in range(cells)])
        masses = 2.0 ** -bits(rows.reshape(-1, horizon, axes))[:, len(known)].astype(np.float64)
        assert masses.sum() == pytest.approx(1.0, abs=1e-5)
        return [Fraction(mass) / Fraction(masses.sum()) for mass in masses]

    for chunk in fit[:3]:
        sent = arithmetic_coded(horizon * axes, distribution, chunk.ravel().tolist())
        assert arithmetic_coded(horizon * axes, distribution, sent) == chunk.ravel().tolist()
        assert len(sent) <= bits(chunk[None]).sum() + 2.01


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


def test_residual_fsq_without_maps_has_cells_four_thirds_as_wide_as_rfsqs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first level has centres at the limits and 0, RFSQ's grid ends at 9/8 of the limits."""
    monkeypatch.setattr(codec_coder, "STEPS", 3)
    halves = Halves.of(chunks(300, 0), chunks(300, 1))
    points = residual_fsq(halves, steps=3)
    assert [p.codec for p in points] == ["ResidualFSQ, steps"] * 9 + ["ResidualFSQ, learned"] * 9
    assert all(p.coded is not None and 8 < p.coded < 2 * p.bits for p in points)
    own = [setting.point for setting in rfsq(halves, 3, 8, "RFSQ")]
    fine = points[4].error.rms_mm / own[4].error.rms_mm
    assert points[4].bits == pytest.approx(own[4].bits) and 1.2 < fine < 1.5


def test_uniform_bins_as_many_as_cells_take_the_same_bits_as_rfsq() -> None:
    halves = Halves.of(chunks(300, 0), chunks(300, 1))
    for own, peer in zip(rfsq(halves, 3, 4, "RFSQ"), uniform(halves, (3, 9, 27, 81)), strict=True):
        assert own.point.bits == pytest.approx(peer.point.bits)
    assert own.point.bits == pytest.approx(8 + 48 * math.log2(81))


def point(codec: str, bits: float, error: float) -> Point:
    errors = ChunkError(*(error for _ in ChunkError.__dataclass_fields__))
    return Point(codec, "", bits, bits, errors)


def test_errors_are_compared_at_equal_bits() -> None:
    """Between two settings of a peer its error is interpolated in the logarithm; beyond them nothing is claimed."""
    peer = [point("uniform bins", 100, 1.0), point("uniform bins", 200, 0.01)]
    rows = compare([point("RFSQ", 150, 0.2), point("RFSQ", 300, 0.001), *peer], "bits")
    assert rows[0]["uniform bins"]["mm"] == pytest.approx(0.1)
    assert rows[1]["uniform bins"]["mm"] is None


def test_it_runs_on_demonstrations_of_liberos_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_peers, "ROUNDING_STEPS", (0.5, 0.05, 0.005))  # of 26, for time
    monkeypatch.setattr(codec_coder, "STEPS", 20)
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
