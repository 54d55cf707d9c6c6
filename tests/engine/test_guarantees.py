"""What the engine promises, with random weights and with the trained ones that are shipped; bad input stops early."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from rsd_policy import Observation, Policy, RSDInferenceEngine, load_policy
from rsd_policy.errors import ObservationError
from tests.policies import random_observation, small_policy

INSTRUCTIONS = ("pick up the black bowl on the stove and place it on the plate", "Pick up the bowl")


@functools.cache
def policy(name: str) -> Policy:
    return small_policy() if name == "random" else load_policy("mini")


def observations(count: int) -> list[Observation]:
    rng = np.random.default_rng(7)
    return [random_observation(rng, INSTRUCTIONS[i % 2]) for i in range(count)]


@pytest.mark.parametrize("weights", ["random", "trained"])
def test_speculative_equals_baseline_bit_for_bit(weights: str) -> None:
    baseline = RSDInferenceEngine(policy(weights), "baseline")
    speculative = RSDInferenceEngine(policy(weights), "speculative")
    answers = []
    for observation in observations(4):
        expected, chunk = baseline.infer(observation), speculative.infer(observation)
        assert chunk.actions.tobytes() == expected.actions.tobytes()
        assert np.array_equal(chunk.tokens, expected.tokens)
        assert chunk.verified and not chunk.skipped
        answers.append(chunk.actions.tobytes())
    assert len(set(answers)) > 1


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["random", "trained"])
def test_resuming_at_the_exit_layer_equals_running_through(weights: str) -> None:
    p = policy(weights)
    x = p.backbone.embed(p.backbone.preprocess(observations(1)))
    last = p.backbone.num_layers
    whole = p.backbone.forward_layers(x, 0, last)
    early = p.backbone.forward_layers(x, 0, p.exit_layer)
    assert torch.equal(p.backbone.forward_layers(early, p.exit_layer, last), whole)
    assert not torch.equal(early, whole)


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["random", "trained"])
def test_batch_of_b_equals_b_singles(weights: str) -> None:
    p = policy(weights)

    def chunks(batch: list[Observation]) -> tuple[torch.Tensor, torch.Tensor]:
        x = p.backbone.embed(p.backbone.preprocess(batch))
        x = p.backbone.forward_layers(x, 0, p.backbone.num_layers)
        return p.head(p.backbone.action_hidden(x))

    together, _ = chunks(observations(3))
    for i, observation in enumerate(observations(3)):
        tokens, margins = chunks([observation])
        # Products of other sizes round differently, which may turn a digit that is all but a tie, and those after it.
        differs = tokens[:, 0] != together[:, i]
        first = differs & (differs.cumsum(0) == 1)
        assert not bool((margins[:, 0][first] > 1e-3).any())
        assert float(differs.double().mean()) < 0.05


def refused(observation: object, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine's message for a bad observation; fails when the model was asked to compute."""
    engine = RSDInferenceEngine(small_policy(), "speculative")

    def computed(*_: object) -> None:
        raise AssertionError("the model was run on a bad observation")

    monkeypatch.setattr(engine.policy.backbone, "embed", computed)
    with pytest.raises(ObservationError) as caught:
        engine.infer(observation)  # type: ignore[arg-type]
    assert engine.totals.chunks == 0
    return str(caught.value)


def test_missing_camera_is_named_with_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = observations(1)[0]
    message = refused(Observation({"front": whole.images["wrist"]}, whole.proprio, "pick up"), monkeypatch)
    assert "missing camera(s) ['agentview', 'wrist']" in message and "got ['front']" in message


def test_instruction_without_a_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = observations(1)[0]
    assert "'?!'" in refused(Observation(whole.images, whole.proprio, "?!"), monkeypatch)


def test_what_is_no_observation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "got dict" in refused({"images": {}}, monkeypatch)


def test_views_and_strided_images_give_what_their_copies_give() -> None:
    engine = RSDInferenceEngine(small_policy(), "baseline")

    def answer(observation: Observation) -> bytes:
        return engine.infer(observation).actions.tobytes()

    whole = observations(1)[0]
    turned = {name: image[::-1, ::-1] for name, image in whole.images.items()}
    copied = {name: image.copy() for name, image in turned.items()}
    assert not turned["wrist"].flags.c_contiguous
    viewed = answer(Observation(turned, whole.proprio, whole.instruction))
    assert viewed == answer(Observation(copied, whole.proprio, whole.instruction))
    assert viewed != answer(whole)


def test_images_of_one_pixel_are_enough_to_answer() -> None:
    images = {name: np.full((1, 1, 3), 90, np.uint8) for name in ("agentview", "wrist")}
    chunk = RSDInferenceEngine(small_policy(), "baseline").infer(Observation(images, np.zeros(8, np.float32), "pick"))
    assert chunk.actions.shape == (8, 7) and np.isfinite(chunk.actions).all()
