"""Small policies on disk, and bags with what they said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rsd_policy import Observation, RSDInferenceEngine, load_policy
from rsd_policy.bags.playback import Playback, read_recorded
from rsd_policy.bags.reader import Bag
from rsd_policy.checkpoints.loading import build_policy, save_policy
from rsd_policy.robots.contract import load_contract
from tests.bags.synthetic import chunk_row, recorded, robot
from tests.policies import small_policy


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a small policy with random weights."""
    directory = tmp_path_factory.mktemp("policy") / "small"
    save_policy(directory, small_policy())
    return directory


@pytest.fixture(scope="session")
def with_gain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, but dz comes out 1 % larger."""
    plain = small_policy()
    codec = plain.manifest["codec"]
    factors = [1.0, 1.0, 1.01, 1.0, 1.0, 1.0, 1.0]
    changed = {name: [f * v for f, v in zip(factors, codec[name], strict=True)] for name in ("scale", "limit")}
    policy = build_policy("gain", plain.manifest | {"codec": codec | changed})
    for name, module in policy.modules().items():
        module.load_state_dict(plain.modules()[name].state_dict())
    directory = tmp_path_factory.mktemp("policy") / "gain"
    save_policy(directory, policy)
    return directory


@pytest.fixture(scope="session")
def answered(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag of 3 moments with what the small policy said to each."""
    folder = tmp_path_factory.mktemp("answered")
    rows = robot(3)
    engine = RSDInferenceEngine(load_policy(policy), mode="speculative")
    observations: list[tuple[int, Observation]] = []
    contract = load_contract()
    with Bag(recorded(folder / "questions", rows)) as bag:
        playback = Playback(bag, contract, read_recorded(bag, contract), period_s=0.0)
        observations = [(shown.stamp, shown.observation) for shown in playback.observations()]
    rows += [chunk_row(stamp, engine.infer(observation).actions) for stamp, observation in observations]
    return recorded(folder / "bag", sorted(rows, key=lambda row: row.time))


@pytest.fixture
def replay(tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """`rsd replay --no-ros`: exit status and directory of the report."""
    from rsd_policy.commands.replay import main

    def run(*arguments: object, out: str = "report") -> tuple[int, Path]:
        return main([*map(str, arguments), "--no-ros", "--out", str(tmp_path / out)]), tmp_path / out

    return run
