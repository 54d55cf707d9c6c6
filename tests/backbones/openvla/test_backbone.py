"""The backbone's promises to the engine, and the published policies' to their callers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rsd_policy.backbones.base import Backbone
from rsd_policy.backbones.openvla.checkpoint import OpenVLAPolicy, load_openvla
from rsd_policy.backbones.openvla.llama import LlamaStack, Rope
from rsd_policy.backbones.openvla.reference import L1Policy, TokenPolicy
from rsd_policy.backbones.openvla.tokenizer import MAX_PROMPT_TOKENS
from rsd_policy.errors import CheckpointError, InferenceError, NonFiniteError, ObservationError
from rsd_policy.heads import RFSQDraftModel, RFSQHead
from rsd_policy.observation import Observation

SHORT, LONG = "pick up the bowl", "pick up the black bowl next to the ramekin"


def observation(seed: int, instruction: str = SHORT) -> Observation:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    return Observation(images, rng.normal(size=8).astype(np.float32), instruction)


@pytest.fixture(scope="module")
def oft(checkpoint: Callable[..., Path]) -> OpenVLAPolicy:
    return load_openvla(checkpoint())


@pytest.fixture(scope="module")
def openvla(checkpoint: Callable[..., Path]) -> OpenVLAPolicy:
    return load_openvla(checkpoint(oft=False))


@pytest.fixture(params=["oft", "openvla"])
def policy(request: pytest.FixtureRequest) -> OpenVLAPolicy:
    return request.getfixturevalue(request.param)


@torch.inference_mode()
def test_resuming_from_any_layer_is_running_through(policy: OpenVLAPolicy) -> None:
    backbone: Backbone = policy.backbone
    x = backbone.embed(backbone.preprocess([observation(0)]))
    whole = backbone.forward_layers(x, 0, 2)
    for exit_layer in (0, 1, 2):
        early = backbone.forward_layers(x, 0, exit_layer)
        assert torch.equal(backbone.forward_layers(early, exit_layer, 2), whole)
    assert torch.equal(backbone.forward_layers(x, 0, 0), x)
    assert backbone.action_hidden(whole).shape == (1, backbone.slots, backbone.hidden_size)


@torch.inference_mode()
def test_final_norm_belongs_to_the_last_layer_only(oft: OpenVLAPolicy) -> None:
    backbone, stack = oft.backbone, oft.backbone.language_model.model
    x = backbone.embed(backbone.preprocess([observation(0)]))
    rope = Rope.table(16, 10000.0, x).at(0, x.shape[1])
    raw = stack.layers[0](x, rope, False, None)
    assert torch.equal(backbone.forward_layers(x, 0, 1), raw)
    assert torch.equal(backbone.forward_layers(x, 0, 2), stack.norm(stack.layers[1](raw, rope, False, None)))


@torch.inference_mode()
def test_batch_equals_singles(policy: OpenVLAPolicy) -> None:
    seen = [observation(seed) for seed in range(3)]
    batch = policy.reference(seen)
    assert batch.shape == (3, policy.horizon, 7)
    singles = np.concatenate([policy.reference([one]) for one in seen])
    np.testing.assert_allclose(batch, singles, atol=1e-5, rtol=0)
    assert len(np.unique(singles[:, 0, 0])) == 3  # images and state reach the actions


def test_instructions_of_unequal_length_keep_their_order(oft: OpenVLAPolicy) -> None:
    seen = [observation(0, SHORT), observation(1, LONG), observation(2, SHORT)]
    singles = np.concatenate([oft.reference([one]) for one in seen])
    np.testing.assert_allclose(oft.reference(seen), singles, atol=1e-5, rtol=0)
    with pytest.raises(ObservationError, match="prompts of one length"):
        oft.backbone.preprocess(seen)


@torch.inference_mode()
def test_sequence_is_laid_out_as_documented(oft: OpenVLAPolicy) -> None:
    backbone = oft.backbone
    inputs = backbone.preprocess([observation(0)])
    x = backbone.embed(inputs)
    words = backbone.language_model.model.embed_tokens(inputs.prompt)
    length = inputs.prompt.shape[1]
    assert inputs.prompt[0, 0] == 1 and inputs.prompt[0, -1] == 29871
    assert x.shape[1] == length + 2 * 256 + 1 + 56 + 1
    assert torch.equal(x[:, 0], words[:, 0])
    assert inputs.proprio is not None and backbone.proprio_projector is not None
    assert torch.equal(x[:, 513], backbone.proprio_projector(inputs.proprio))
    assert torch.equal(x[:, 514 : 514 + length - 1], words[:, 1:])
    assert not x[:, -57:-1].any()
    assert torch.equal(x[0, -1], backbone.language_model.model.embed_tokens.weight[2])
    # The hidden states start at the prompt's last token.
    assert torch.equal(backbone.action_hidden(x)[:, 0], words[:, -1])
    assert torch.equal(backbone.action_hidden(x)[:, 1:], x[:, -57:-2])


@torch.inference_mode()
def test_tokens_with_cache_are_those_without(openvla: OpenVLAPolicy) -> None:
    backbone, reference = openvla.backbone, openvla.reference
    assert isinstance(reference, TokenPolicy) and backbone.language_model.lm_head is not None
    x = backbone.embed(backbone.preprocess([observation(0)]))
    cached = reference.decode_tokens(x)
    tokens = []
    for _ in range(7):
        logits = backbone.language_model.lm_head(backbone.forward_layers(x, 0, 2)[:, -1])
        tokens.append(logits.argmax(dim=-1))
        x = torch.cat([x, backbone.language_model.model.embed_tokens(tokens[-1])[:, None]], dim=1)
    np.testing.assert_array_equal(cached, torch.stack(tokens, dim=1).numpy())


def test_causal_layers_do_not_look_ahead(openvla: OpenVLAPolicy, oft: OpenVLAPolicy) -> None:
    x = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, -1] += 1

    def first_eight(stack: LlamaStack, sequence: torch.Tensor) -> torch.Tensor:
        return stack.forward_layers(sequence, 0, 2)[:, :-1]

    causal, bidirectional = openvla.backbone.language_model.model, oft.backbone.language_model.model
    torch.testing.assert_close(first_eight(causal, changed), first_eight(causal, x), rtol=0, atol=1e-6)
    assert (first_eight(bidirectional, changed) - first_eight(bidirectional, x)).abs().max() > 1e-2


@torch.inference_mode()
def test_layers_see_only_relative_positions(oft: OpenVLAPolicy) -> None:
    stack = oft.backbone.language_model.model
    x = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))
    table = Rope.table(16, 10000.0, x)
    plain, shifted = (stack.layers[0].self_attn(x, table.at(start, 9), False, None) for start in (0, 100))
    torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_angles_stay_where_they_are_for_captured_graphs(oft: OpenVLAPolicy) -> None:
    stack = oft.backbone.language_model.model
    before = stack._rope_for(torch.zeros(1, 9, 64), 0).cos.data_ptr()
    stack.forward_layers(torch.zeros(1, 30, 64), 0, 1)
    assert stack._rope_for(torch.zeros(1, 9, 64), 0).cos.data_ptr() == before
    with pytest.raises(ObservationError, match=r"at most 4096 tokens .* got 4097"):
        stack.forward_layers(torch.zeros(1, 4097, 64), 0, 1)


def test_gripper_is_binary_and_in_the_simulators_sense(oft: OpenVLAPolicy) -> None:
    normalised = np.zeros((3, 7))
    normalised[:, 6] = (0.9, 0.1, 0.51)  # 1 is open in the training data
    actions = oft.backbone.units.actions(normalised)
    assert actions[:, 6].tolist() == [-1.0, 1.0, -1.0]
    assert actions.dtype == np.float32


def test_missing_camera_is_named_before_any_compute(oft: OpenVLAPolicy) -> None:
    seen = observation(0)
    one = Observation({"agentview": seen.images["agentview"]}, seen.proprio, SHORT)
    with pytest.raises(ObservationError, match="wrist"):
        oft.reference([one])


def test_overlong_prompt_is_refused(oft: OpenVLAPolicy) -> None:
    with pytest.raises(ObservationError, match=f"at most {MAX_PROMPT_TOKENS} tokens"):
        oft.reference([observation(0, "é" * 400)])


def test_tokeniser_with_ids_beyond_the_embedding_is_refused(oft: OpenVLAPolicy) -> None:
    tokenizer = oft.backbone.tokenizer
    small = object.__new__(type(tokenizer))
    small.__dict__.update(tokenizer.__dict__, _vocabulary_size=29900)
    with pytest.raises(CheckpointError, match="beyond the model's 29900 embeddings"):
        small._encode_once(SHORT)


def test_nan_is_an_error_and_no_action(checkpoint: Callable[..., Path]) -> None:
    policy = load_openvla(checkpoint())
    assert isinstance(policy.reference, L1Policy)
    with torch.no_grad():
        policy.reference.action_head.model.fc2.bias[2] = torch.nan
    with pytest.raises(NonFiniteError, match="no action was produced"):
        policy.reference([observation(0)])


def test_answer_that_ends_early_is_an_error(checkpoint: Callable[..., Path]) -> None:
    policy = load_openvla(checkpoint(oft=False))
    lm_head = policy.backbone.language_model.lm_head
    assert lm_head is not None
    with torch.no_grad():
        lm_head.weight[3:] = 0
        lm_head.weight[2] = 0
        lm_head.weight[:2] = 0
        x = policy.backbone.embed(policy.backbone.preprocess([observation(0)]))
        lm_head.weight[2] = policy.backbone.forward_layers(x, 0, 2)[0, -1]
    with pytest.raises(InferenceError, match="ended its answer early"):
        policy.reference([observation(0)])


@torch.inference_mode()
def test_rsd_heads_fit_on_both(policy: OpenVLAPolicy) -> None:
    backbone: Backbone = policy.backbone
    common = {"hidden_size": backbone.hidden_size, "horizon": backbone.horizon, "slots": backbone.slots}
    sizes = {**common, "width": 32, "num_layers": 1}
    draft, head = RFSQDraftModel(**sizes), RFSQHead(**sizes)
    x = backbone.forward_layers(backbone.embed(backbone.preprocess([observation(0)])), 0, 1)
    assert draft(backbone.action_hidden(x))[0].shape == (3, 1, backbone.horizon, 7)
    x = backbone.forward_layers(x, 1, backbone.num_layers)
    assert head(backbone.action_hidden(x))[0].shape == (8, 1, backbone.horizon, 7)
