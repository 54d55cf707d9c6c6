"""Graphs of real processes in private ROS domains. `./rsd test` provides the environment that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rsd_policy.checkpoints.loading import save_policy
from rsd_policy.graph.bringup import NodeSpec
from rsd_policy.graph.supervisor import end_processes, ros_domain, start_process
from tests.bags.conftest import answered, policy, with_gain  # noqa: F401
from tests.policies import small_policy
from tests.ros.probe import Probe


@pytest.fixture(scope="session", autouse=True)
def own_domains() -> Iterator[None]:
    """Every graph chooses a free domain, whatever the caller's environment says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ROS_DOMAIN_ID", raising=False)
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        # Mesa starts a thread per core for each context; with several simulations at once they only wait for each other
        patch.setenv("LP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def domain(own_domains: None) -> Iterator[int]:
    with ros_domain() as number:
        yield number


@pytest.fixture(scope="module")
def probe(domain: int) -> Iterator[Probe]:
    probe = Probe(domain)
    yield probe
    probe.close()


@pytest.fixture(scope="module")
def start(probe: Probe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """Starts a node process in the module's domain; all end with the module."""
    logs = tmp_path_factory.mktemp("logs")

    def start_node(module: str, name: str, **parameters: object) -> None:
        spec = NodeSpec("rsd_policy", name, module, name, parameters)
        probe.processes.append(start_process(spec, config=None, logs=logs, domain=probe.domain))

    yield start_node
    end_processes(probe.processes)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a small policy with random weights: it does not matter here where the arm goes."""
    directory = tmp_path_factory.mktemp("checkpoint") / "untrained"
    save_policy(directory, small_policy())
    return directory
