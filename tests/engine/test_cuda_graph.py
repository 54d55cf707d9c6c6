"""CUDA graphs: a replay gives what the function gives, outputs are the caller's own, modes agree bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsd_policy import Policy, RSDInferenceEngine, load_policy
from rsd_policy.checkpoints.policy import Heads
from rsd_policy.engine.cuda_graph import GraphedCall
from rsd_policy.engine.gate import Gate
from rsd_policy.errors import NonFiniteError
from rsd_policy.heads import RFSQDraftModel, RFSQHead
from tests.backbones.openvla.random_checkpoint import write_checkpoint
from tests.policies import random_observation, small_policy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@torch.inference_mode()
def test_replay_gives_the_functions_result_and_leaves_earlier_results_alone() -> None:
    head = RFSQHead(hidden_size=256, width=128, num_layers=2).cuda().eval()
    hidden = [torch.randn(1, 56, 256, device="cuda") for _ in range(3)]
    graph = GraphedCall(head, (hidden[0],))
    results = [graph(h) for h in hidden]
    for h, (tokens, margins) in zip(hidden, results, strict=True):
        expected_tokens, expected_margins = head(h)
        assert torch.equal(tokens, expected_tokens)
        assert torch.allclose(margins, expected_margins, atol=1e-5)
    assert not torch.equal(results[0][1], results[1][1])


@torch.inference_mode()
def test_a_recording_outlives_the_workspaces_of_its_time() -> None:
    """torch.compile frees cuBLAS's workspaces when it records: graphs that had them wrote into foreign memory."""
    weight = torch.randn(1024, 4096, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(56, 4096, device="cuda", dtype=torch.bfloat16)  # a product that cuBLAS splits, into its workspace
    torch.cuda.empty_cache()
    graph = GraphedCall(lambda x: torch.nn.functional.linear(x, weight), (x,))
    expected = graph(x)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    others = [torch.zeros(2**20, device="cuda") for _ in range(64)]
    assert torch.equal(graph(x), expected)
    assert not any(bool(other.any()) for other in others)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_speculative_equals_baseline_bit_for_bit(cuda_graphs: bool) -> None:
    rng = np.random.default_rng(0)
    observations = [random_observation(rng, text) for text in ("Pick up the bowl", "pick up the plate") * 3]
    baseline = RSDInferenceEngine(small_policy(), "baseline", "cuda", cuda_graphs=cuda_graphs)
    speculative = RSDInferenceEngine(small_policy(), "speculative", "cuda", cuda_graphs=cuda_graphs)
    chunks = set()
    for observation in observations:
        reference = baseline.infer(observation)
        provisional, final = list(speculative.stream(observation))
        assert np.array_equal(final.actions, reference.actions)
        assert np.array_equal(final.tokens, reference.tokens)
        assert provisional.levels == 3
        chunks.add(final.actions.tobytes())
    assert len(chunks) > 1


def test_graphs_and_eager_kernels_name_the_same_actions() -> None:
    observation = random_observation(np.random.default_rng(0))
    graphed = RSDInferenceEngine(small_policy(), "baseline", "cuda").infer(observation)
    eager = RSDInferenceEngine(small_policy(), "baseline", "cuda", cuda_graphs=False).infer(observation)
    assert np.mean(graphed.tokens != eager.tokens) < 0.01  # another algorithm may round a tie the other way


def test_graphs_of_one_prompt_length_outlive_another(tmp_path: Path) -> None:
    reference = load_policy(write_checkpoint(tmp_path), "cuda")
    heads = small_policy().rsd
    common: dict[str, Any] = {"hidden_size": 64, "horizon": 8, "slots": 56, "width": 16, "num_layers": 1}
    torch.manual_seed(0)
    own = Heads(RFSQHead(**common).bfloat16().eval(), RFSQDraftModel(**common).bfloat16().eval(), heads.codec, 1)
    policy = Policy("openvla", reference.backbone, reference.manifest, own)
    baseline, speculative = (RSDInferenceEngine(policy, mode, "cuda") for mode in ("baseline", "speculative"))
    rng = np.random.default_rng(0)
    seen = [random_observation(rng, text) for text in ("pick up the bowl", "open it", "push the plate")]
    first = [baseline.infer(observation) for observation in seen]
    for observation, expected in zip(seen * 2, first * 2, strict=True):
        torch.cuda.empty_cache()  # freed memory that a graph still reads would now be somebody else's
        for engine in (baseline, speculative):
            chunk = engine.infer(observation)
            assert chunk.actions.tobytes() == expected.actions.tobytes()
            assert np.array_equal(chunk.tokens, expected.tokens)
    assert len({chunk.actions.tobytes() for chunk in first}) > 1


def test_a_published_policy_answers_from_a_graph_as_without(tmp_path: Path) -> None:
    policy = load_policy(write_checkpoint(tmp_path), "cuda")
    assert policy.reference is not None
    policy.reference.float()
    graphed, eager = (RSDInferenceEngine(policy, "baseline", "cuda", cuda_graphs=way) for way in (True, False))
    rng = np.random.default_rng(0)
    chunks = []
    for text in ("pick up the bowl", "open it", "pick up the bowl"):
        observation = random_observation(rng, text)
        chunk = graphed.infer(observation)
        assert list(chunk.stats.stage_ms) == ["preprocess", "vision", "reference", "decode", "host"]
        assert np.allclose(chunk.actions, eager.infer(observation).actions, atol=1e-3)
        chunks.append(chunk.actions.tobytes())
    assert len(set(chunks)) == 3


@torch.inference_mode()
def test_nan_in_the_weights_is_an_error_of_the_recorded_engine_too() -> None:
    policy = small_policy()
    engine = RSDInferenceEngine(policy, "speculative", "cuda")
    observation = random_observation(np.random.default_rng(0))
    assert engine.infer(observation).verified
    policy.mini.slot.fill_(float("nan"))  # in place: the graph reads it
    with pytest.raises(NonFiniteError):
        engine.infer(observation)


def test_a_gate_on_the_gpu_skips_what_it_skips_without_graphs() -> None:
    policy = small_policy(6, "mode")
    gate = Gate(0.7, alpha=1.0, steps=8, gripper_rule=False)  # these random weights score on both sides of 0.7
    engines = [
        RSDInferenceEngine(policy, "gated", "cuda", gate=gate, audit_every=2, cuda_graphs=way) for way in (True, False)
    ]
    rng = np.random.default_rng(0)
    skipped = []
    for _ in range(12):
        observation = random_observation(rng)
        graphed, eager = (engine.infer(observation) for engine in engines)
        assert graphed.skipped == eager.skipped
        assert np.mean(graphed.tokens != eager.tokens) < 0.02
        skipped.append(graphed.skipped)
    assert len(set(skipped)) == 2
    assert engines[0].totals.audited == engines[1].totals.audited > 0
