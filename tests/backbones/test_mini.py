"""`mini`: resuming equals running through, the text matters, bad observations are refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from rsd_policy.backbones.mini import MAX_WORDS, WordTokenizer, halved
from rsd_policy.errors import ObservationError
from rsd_policy.images import resize_frame
from rsd_policy.observation import Observation
from tests.policies import WORDS, random_observation, small_policy


@torch.inference_mode()
def test_resuming_from_any_layer_equals_running_through() -> None:
    backbone = small_policy().backbone
    x = backbone.embed(backbone.preprocess([random_observation(np.random.default_rng(0))]))
    whole = backbone.forward_layers(x, 0, 4)
    for k in range(1, 4):
        assert torch.equal(backbone.forward_layers(backbone.forward_layers(x, 0, k), k, 4), whole)
    assert not torch.allclose(whole, x)


@torch.inference_mode()
def test_every_input_changes_the_action_slots() -> None:
    backbone = small_policy().backbone
    rng = np.random.default_rng(0)
    base = random_observation(rng)
    other = random_observation(rng, "Pick up the plate")

    def slots(observation: Observation) -> torch.Tensor:
        x = backbone.embed(backbone.preprocess([observation]))
        return backbone.action_hidden(backbone.forward_layers(x, 0, 4))

    reference = slots(base)
    for images, proprio, instruction in (
        ({**base.images, "agentview": other.images["agentview"]}, base.proprio, base.instruction),
        ({**base.images, "wrist": other.images["wrist"]}, base.proprio, base.instruction),
        (base.images, other.proprio, base.instruction),
        (base.images, base.proprio, other.instruction),
    ):
        assert not torch.allclose(slots(Observation(images, proprio, instruction)), reference)


@torch.inference_mode()
def test_a_batch_gives_what_its_members_give() -> None:
    backbone = small_policy().backbone
    rng = np.random.default_rng(1)
    observations = [random_observation(rng), random_observation(rng, "up the plate")]
    together = backbone.forward_layers(backbone.embed(backbone.preprocess(observations)), 0, 4)
    for i, observation in enumerate(observations):
        alone = backbone.forward_layers(backbone.embed(backbone.preprocess([observation])), 0, 4)
        assert torch.allclose(together[i], alone[0], atol=1e-4)


@torch.inference_mode()
def test_readers_give_the_draft_more_than_the_slots_and_leave_the_sequence_alone() -> None:
    backbone = small_policy().backbone
    x = backbone.embed(backbone.preprocess([random_observation(np.random.default_rng(2))]))
    x = backbone.forward_layers(x, 0, 2)
    before = x.clone()
    read = backbone.exit_hidden(x)
    assert read.shape == backbone.action_hidden(x).shape
    assert torch.equal(x, before)
    changed = x.clone()
    changed[:, 0, 0] += 10.0  # a vision token
    assert torch.equal(backbone.action_hidden(changed), backbone.action_hidden(x))
    assert not torch.allclose(backbone.exit_hidden(changed), read)


@pytest.mark.parametrize("change", ["in place", "loaded", "replaced", "precision"])
def test_other_weights_do_not_answer_with_the_old_ones_text(change: str) -> None:
    """Text features were kept by the words alone: a policy that got other weights went on with the old instruction."""
    backbone, other = small_policy(0).mini, small_policy(1).mini
    inputs = backbone.preprocess([random_observation(np.random.default_rng(0))])
    with torch.inference_mode():
        before = backbone.embed(inputs)
        assert torch.equal(backbone.embed(inputs), before)
    if change == "in place":
        backbone.text.out.bias.add_(1.0)
    elif change == "loaded":
        backbone.text.load_state_dict(other.text.state_dict())
    elif change == "replaced":
        backbone.text = other.text
    else:
        backbone.to(torch.float64)
    with torch.inference_mode():
        changed = backbone.embed(inputs)
    assert changed.dtype == backbone.position.dtype
    assert torch.equal(changed, backbone.embed(inputs))  # nothing is kept outside inference mode
    assert not torch.equal(changed.float(), before)


def test_the_text_is_read_once_for_an_instruction() -> None:
    backbone = small_policy().mini
    reads: list[torch.Tensor] = []
    backbone.text.register_forward_hook(lambda *arguments: reads.append(arguments[2]))
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for text in ("pick up the bowl", "pick up the bowl", "pick up the plate", "pick up the plate"):
            backbone.embed(backbone.preprocess([random_observation(rng, text)]))
    assert len(reads) == 2


def test_tokenizer_ignores_case_and_punctuation_and_tells_unknown_words_apart() -> None:
    tokenizer = WordTokenizer(WORDS)
    assert tokenizer("Pick up, the BOWL!") == tokenizer("pick up the bowl")
    assert len(tokenizer("bowl " * 100)) == MAX_WORDS
    assert tokenizer("zebra") != tokenizer("giraffe")
    assert max(tokenizer(" ".join(WORDS))) < tokenizer.size


def test_frames_are_area_resized_as_stored_demonstrations_are() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    small = resize_frame(frame, 128)
    assert np.array_equal(small, cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA))
    assert np.abs(small.astype(float) - frame.reshape(128, 2, 128, 2, 3).mean((1, 3))).max() <= 1.0
    assert resize_frame(small, 128) is small


def test_a_missing_camera_is_named() -> None:
    backbone = small_policy().backbone
    whole = random_observation(np.random.default_rng(0))
    with pytest.raises(ObservationError, match="wrist"):
        backbone.preprocess([Observation({"agentview": whole.images["agentview"]}, whole.proprio, "pick")])
    with pytest.raises(ObservationError, match="word"):
        backbone.preprocess([Observation(whole.images, whole.proprio, "?!")])


def test_frames_halved_on_the_device_are_those_of_resize_frame() -> None:
    """A GPU's path halves camera frames itself: every pixel must be what demonstrations were stored with."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
    given = halved(torch.from_numpy(frames)).numpy()
    expected = np.stack([cv2.resize(frame, (48, 32), interpolation=cv2.INTER_AREA) for frame in frames])
    assert np.array_equal(given, expected)


@pytest.mark.parametrize("height, width", [(64, 64), (64, 48), (32, 32)])
def test_staged_frames_give_the_pixels_of_preprocess(height: int, width: int) -> None:
    backbone = small_policy().mini
    rng = np.random.default_rng(1)
    images = {name: rng.integers(0, 256, (height, width, 3), dtype=np.uint8)[::-1] for name in ("agentview", "wrist")}
    observations = [Observation(images, np.zeros(8, np.float32), text) for text in ("pick", "place it")]
    staged = {name: torch.from_numpy(array.copy()) for name, array in backbone.stage(observations).items()}
    given, expected = backbone.prepare(staged), backbone.preprocess(observations)
    assert torch.equal(given.images, expected.images) and torch.equal(given.words, expected.words)
