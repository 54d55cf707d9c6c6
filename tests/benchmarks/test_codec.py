"""The codec's study: its estimates of bits are right where the answer is known, and it runs on a stranger's data."""

from __future__ import annotations

import builtins
import json
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from benchmarks.codec import coder as codec_coder
from benchmarks.codec import peers as codec_peers
from benchmarks.codec.__main__ import PEERS, compare, judge, main
from benchmarks.codec.coder import ContextCoder, Symbols, coded_bits, regression
from benchmarks.codec.dct_levels import DCTLevels
from benchmarks.codec.peers import Halves, Point, rfsq, uniform
from benchmarks.codec.prediction import main as predict
from benchmarks.codec.residual_fsq import LEVELS, residual_fsq
from benchmarks.codec.sample import load_sample
from benchmarks.codec.sample import main as make_sample
from rsd_policy.codec import RFSQCodec
from rsd_policy.codec.measure import ChunkError
from rsd_policy.codec.rfsq import BINS


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
    assert [p.codec for p in points] == ["ResidualFSQ, steps"] * LEVELS + ["ResidualFSQ, learned"] * LEVELS
    assert all(p.coded is not None and 8 < p.coded < 2 * p.bits for p in points)
    own = rfsq(halves, BINS, "RFSQ")[3].point  # nine cells at first are two levels of three
    fine = points[4].error.rms_mm / own.error.rms_mm
    assert points[4].bits == pytest.approx(own.bits) and 1.2 < fine < 1.5


@pytest.mark.parametrize("bins", [BINS[:4], (3,) * 4, (5, 7, 3)])
def test_uniform_bins_as_many_as_cells_take_the_same_bits_as_rfsq(bins: tuple[int, ...]) -> None:
    halves = Halves.of(chunks(300, 0), chunks(300, 1))
    counts = tuple(accumulate(bins, operator.mul))
    for own, peer in zip(rfsq(halves, bins, "RFSQ"), uniform(halves, counts), strict=True):
        assert own.point.bits == pytest.approx(peer.point.bits)
        assert own.symbols is not None and (own.symbols.cells <= counts[-1]).all()
    assert own.point.bits == pytest.approx(8 + 48 * math.log2(math.prod(bins)))


@pytest.mark.parametrize("bins", [BINS, (5, 7, 3)])
def test_the_coder_is_given_the_cells_that_rfsq_decodes(bins: tuple[int, ...]) -> None:
    """Symbols of mixed bases are numbers of cells: their centres, unless beyond the limit, are the decoded actions."""
    halves = Halves.of(chunks(300, 0), chunks(300, 1))
    codec = RFSQCodec.fit(torch.from_numpy(halves.fit), bins)
    tokens = codec.encode(torch.from_numpy(halves.test))
    for used, setting in enumerate(rfsq(halves, bins, "RFSQ"), start=1):
        assert setting.symbols is not None
        centres = np.clip(setting.symbols.values(setting.symbols.test), -1.0, 1.0) * halves.limit
        np.testing.assert_allclose(centres, codec.decode(tokens[:used]).numpy()[..., :6], atol=1e-6)


def point(codec: str, bits: float, error: float) -> Point:
    errors = ChunkError(*(error for _ in ChunkError.__dataclass_fields__))
    return Point(codec, "", bits, bits, errors)


def test_errors_are_compared_at_equal_bits() -> None:
    """Between two settings of a peer its error is interpolated in the logarithm; beyond them nothing is claimed."""
    peer = [point("uniform bins", 100, 1.0), point("uniform bins", 200, 0.01)]
    rows = compare([point("RFSQ", 150, 0.2), point("RFSQ", 300, 0.001), *peer], "bits")
    assert rows[0]["uniform bins"]["mm"] == pytest.approx(0.1)
    assert rows[1]["uniform bins"]["mm"] is None


def verdict(rate: str, **ratios: list[float]) -> tuple[str, bool]:
    """The verdict against uniform bins, given RFSQ's error over the peer's at each prefix of levels."""
    units = {unit: ratios.get(unit.replace(" ", "_"), [0.5] * 3) for unit in ("mm", "rad", "all axes")}
    rows = [
        {"levels": name, "RFSQ": {unit: units[unit][i] for unit in units}}
        | {peer: dict.fromkeys(units, 1.0 if peer == "uniform bins" else None) for peer in PEERS}
        for i, name in enumerate(("L0", "L0-L1", "L0-L2"))
    ]
    errors = [point("", 1, error).error for error in (0.4, 0.2, 0.1)]
    *_, last = judge(errors, point("", 1, 1.0).error, {rate: rows})
    return last


def test_the_error_over_all_axes_is_judged_and_the_others_are_told() -> None:
    line, met = verdict("bits", rad=[2.0, 0.9, 0.9])
    assert met
    assert line == (
        "fixed rate, no worse than uniform bins over all axes: 3/3; mm alone 3/3; rad alone 2/3 (worse at L0 x2.00)"
    )
    assert "rad alone 3/3;" in verdict("bits", rad=[1.0, 1.0, 1.0 + 1e-6])[0] + ";", "the same cells"
    line, met = verdict("bits", all_axes=[0.9, 0.9, 1.01])
    assert not met and "over all axes: 2/3 (worse at L0-L2 x1.01); mm alone 3/3" in line


def test_what_the_coders_training_changes_is_a_tie() -> None:
    """Where bits are learned; at a fixed rate they are counted."""
    line, met = verdict("coded", all_axes=[1.01, 0.9, 0.99])
    assert met and "over all axes: 3/3 (tie at L0 x1.01, L0-L2 x0.99)" in line
    line, met = verdict("coded", all_axes=[1.01, 1.03, 0.9])
    assert not met and "2/3 (worse at L0-L1 x1.03; tie at L0 x1.01)" in line


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


def test_heads_predict_codecs_of_other_bins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "task_demo.hdf5", "w") as file:
        for index, chunk in enumerate(chunks(8, 2)):
            file[f"data/demo_{index}/actions"] = np.repeat(chunk, 3, axis=0)
    out = tmp_path / "prediction.json"
    assert predict(["--data", str(tmp_path), "--json", str(out), "--steps", "2", "--seeds", "1"]) == 0
    outcomes = json.loads(out.read_text())["outcomes"]
    assert [o["codec"] for o in outcomes] == ["RFSQ", "RFSQ, 3 bins", "DCT + RFSQ"]
    for outcome in outcomes:
        assert list(outcome["errors"]) == ["L0-L2", "L0-L3", "L0-L7"] and len(outcome["accuracy"]) == len(BINS)
    assert "RFSQ, 3 bins" in capsys.readouterr().out


def test_the_sample_takes_so_many_of_a_task_that_no_policy_began(tmp_path: Path) -> None:
    demonstrations, sample = tmp_path / "demos", tmp_path / "sample.npz"
    length = 20
    for suite, task in (("libero_goal", 0), ("libero_goal", 1), ("libero_10", 0)):
        (demonstrations / suite).mkdir(parents=True, exist_ok=True)
        for seed, pilot in enumerate(("", "mini", "", "", "")):
            length += 1  # tells the episodes apart
            with h5py.File(demonstrations / suite / f"task{task:02d}-seed{seed:08d}.hdf5", "w") as file:
                file["data/demo_0/actions"] = np.ones((length, 7), np.float32)
                file["data/demo_0/expert_actions"] = np.ones((length, 7), np.float32)
                file["data"].attrs["pilot"] = pilot
    assert make_sample([str(demonstrations), "--episodes-per-task", "2", "--out", str(sample)]) == 0
    taken = [(episode.task, len(episode.actions)) for episode in load_sample(sample)]
    assert taken == [
        *(("libero_10/task00", length) for length in (31, 33)),
        *(("libero_goal/task00", length) for length in (21, 23)),
        *(("libero_goal/task01", length) for length in (26, 28)),
    ]


def test_a_sample_of_no_demonstrations_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_sample([str(tmp_path)]) == 2
    with h5py.File(tmp_path / "task00-seed00000000.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.ones((20, 7), np.float32)
        file["data"].attrs["pilot"] = "mini"
    assert make_sample([str(tmp_path)]) == 2
    with h5py.File(tmp_path / "two_demo.hdf5", "w") as file:
        file["data/demo_0/actions"] = file["data/demo_1/actions"] = np.ones((20, 7), np.float32)
    assert make_sample([str(tmp_path)]) == 2
    refusals = capsys.readouterr().err.splitlines()
    for line, reason in zip(refusals, ("found none", "drove from the beginning", "one episode a file"), strict=True):
        assert reason in line


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
