"""A policy that hangs without an error: it says so itself, and the run ends naming it, in both clocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from rsd_policy.evaluation.results import ERROR
from rsd_policy.evaluation.store import ResultStore
from rsd_policy.exit_status import NOT_RUN
from rsd_policy.graph.bringup import eval_nodes
from rsd_policy.graph.supervisor import run_graph


@pytest.mark.parametrize("clock", ["lockstep", "realtime"])
def test_a_hanging_policy_ends_the_run_and_is_named(tmp_path, untrained, capfd, clock):
    out = tmp_path / "out"
    config = tmp_path / "config.yaml"
    sections = {
        "/**": {"execute_steps": 8, "limit": 1.0, "image_size": 64},
        "policy_node": {"inference_timeout": 3.0},
        "eval_node": {"stall_timeout": 5.0},
    }
    config.write_text(yaml.safe_dump({node: {"ros__parameters": values} for node, values in sections.items()}))
    specs = eval_nodes(
        task_suite="libero_object",
        tasks="0,1",
        trials="0",
        policy=str(untrained),
        mode="speculative",
        clock=clock,
        device="cpu",
        seed=0,
        out=str(out),
        report=True,
    )
    hanging = [replace(s, module="tests.ros.hanging_policy") if s.name == "policy_node" else s for s in specs]
    assert run_graph(hanging, config=config, logs=tmp_path / "logs") == NOT_RUN
    assert "policy_node is silent: nothing came from it for 5 s at step" in capfd.readouterr().err
    with ResultStore.open_results(out) as store:
        (episode,) = store.episodes()
    assert episode.outcome == ERROR, "the second episode is not tried"
    assert "it reports InferenceError: expected a chunk within 3 s (inference_timeout)" in episode.error
