"""`mini`: a small vision-language-action backbone that runs on a laptop CPU.

    [64 agentview | 16 wrist | 1 proprio | 4 text | T action slots] -> num_layers pre-norm transformer layers

Each camera has a residual convolutional stem (128x128 -> 8x8 tokens; the wrist's are halved once more, to 4x4, because
the time of the layers is proportional to the number of tokens). The instruction is tokenised into words, read by a
two-layer text transformer and pooled by learned queries, so that a paraphrase is a different input and not another
index. Attention is bidirectional. Residual branches start at zero.

The draft does not read the slots after layer k as they are: `exit_readers` layers in which only the slots ask, of the
whole sequence, refine them first. Such a layer has a quarter of the operations of a full one.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rsd_policy import kernels
from rsd_policy.errors import ObservationError
from rsd_policy.images import resize_frame
from rsd_policy.observation import STATES, Observation, state_of

CAMERAS = ("agentview", "wrist")
MAX_WORDS = 32
UNKNOWN_BUCKETS = 64


@dataclass(frozen=True)
class MiniConfig:
    """Sizes of the backbone; all of them are stored in the checkpoint's manifest.

    Attributes:
        width: of the residual stream. num_layers, num_heads: of the transformer.
        horizon: T, action slots.
        image_size: edge of the frames the stems read, px.
        stem_channels: of the stems at 1/4 and 1/8 of the image's size.
        grids: tokens along an edge, per camera: image_size / 16 or a half of it.
        text_width, text_tokens: width of the text encoder and tokens it hands on.
        exit_readers: layers between the exit and the draft; none in the earliest checkpoints.
        state: form of the robot's state, one of `STATES`; checkpoints that do not say it have the first.
        vocabulary: words with an id of their own.
    """

    width: int = 320
    num_layers: int = 10
    num_heads: int = 5
    horizon: int = 8
    image_size: int = 128
    stem_channels: tuple[int, int] = (48, 128)
    grids: tuple[int, int] = (8, 4)
    text_width: int = 192
    text_tokens: int = 4
    exit_readers: int = 0
    state: str = "axis_angle"
    vocabulary: tuple[str, ...] = ()

    def to_manifest(self) -> dict[str, Any]:
        """Values as JSON-serialisable types."""
        return asdict(self)

    @classmethod
    def from_manifest(cls, entry: dict[str, Any]) -> MiniConfig:
        """Rebuild the configuration from `to_manifest`'s values."""
        values = dict(entry)
        values["stem_channels"] = tuple(values["stem_channels"])
        values["grids"] = tuple(values["grids"])
        values["vocabulary"] = tuple(values["vocabulary"])
        return cls(**values)


@dataclass
class MiniInputs:
    """Model-ready tensors of a batch of observations.

    Attributes:
        images: uint8 [B, cameras, image_size, image_size, 3].
        proprio: float32 [B, 8 or 10], the state in the backbone's form, raw units.
        words: int64 [B, MAX_WORDS], 0 is padding.
    """

    images: Tensor
    proprio: Tensor
    words: Tensor


class WordTokenizer:
    """Lower-case word tokeniser with a fixed vocabulary; unknown words share `UNKNOWN_BUCKETS` hashed ids.

    Ids: 0 padding, 1 .. UNKNOWN_BUCKETS unknown words, then the vocabulary in order.
    """

    def __init__(self, vocabulary: tuple[str, ...]) -> None:
        self.index = {word: 1 + UNKNOWN_BUCKETS + i for i, word in enumerate(vocabulary)}
        self.size = 1 + UNKNOWN_BUCKETS + len(vocabulary)

    @staticmethod
    def split(instruction: str) -> list[str]:
        """Words and numbers of an instruction, lower case, punctuation dropped."""
        return re.findall(r"[a-z0-9]+", instruction.lower())

    def __call__(self, instruction: str) -> list[int]:
        """Ids of the first MAX_WORDS words, padded with 0 to MAX_WORDS."""
        words = self.split(instruction)[:MAX_WORDS]
        if not words:
            raise ObservationError(f"instruction: expected at least one word, got {instruction!r}")
        # crc32 and not hash(): Python's hash of a string changes from process to process.
        ids = [self.index.get(word, 1 + zlib.crc32(word.encode()) % UNKNOWN_BUCKETS) for word in words]
        return ids + [0] * (MAX_WORDS - len(ids))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group normalisation; the second starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_gelu_of_norm(x, self.norm1))
        return x + self.conv2(_gelu_of_norm(h, self.norm2))


def _gelu_of_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    if not kernels.enabled():
        return functional.gelu(norm(x))
    from rsd_policy.kernels.stems import gelu_of_group_norm

    return gelu_of_group_norm(x, norm)


class ConvStem(nn.Module):
    """One camera: [B, 3, S, S] in [-1, 1] -> [B, grid * grid, width] tokens in raster order.

    The first convolution goes to a quarter of the size at once: at half the size its output would be the largest
    tensor of the whole model, and a CPU would spend more time on it than on two transformer layers.
    """

    def __init__(self, channels: tuple[int, int], width: int, halvings: int) -> None:
        super().__init__()
        c1, c2 = channels
        layers: list[nn.Module] = [
            nn.Conv2d(3, c1, 8, stride=4, padding=2),
            ResidualBlock(c1),
            nn.Conv2d(c1, c2, 3, stride=2, padding=1),
            ResidualBlock(c2),
            nn.Conv2d(c2, width, 3, stride=2, padding=1),
        ]
        for _ in range(halvings):
            layers += [nn.GELU(), nn.Conv2d(width, width, 3, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image).flatten(2).transpose(1, 2)


def _start_at_zero(*layers: nn.Linear) -> None:
    """Let the residual branches that end in these layers begin as the identity."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


class Block(nn.Module):
    """Pre-norm transformer layer, bidirectional attention, residual branches initialised at zero."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        _start_at_zero(self.out, self.down)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if kernels.enabled():
            return self.fused(x, keep=None if mask is None else mask[:, 0, 0])
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))

    def fused(self, x: Tensor, only_last: int | None = None, keep: Tensor | None = None) -> Tensor:
        """`forward` in fused kernels, of all positions or only of the last ones; `keep` is the mask, [B, S]."""
        from rsd_policy.kernels.transformer import Affine, Layer, transformer_layer

        qkv, out, up, down = (Affine.of(layer) for layer in (self.qkv, self.out, self.up, self.down))
        return transformer_layer(x, Layer(self.num_heads, self.norm1, qkv, out, self.norm2, up, down), only_last, keep)


class SlotReader(nn.Module):
    """Pre-norm cross-attention of the action slots to the whole sequence, residual branches initialised at zero."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_slots = nn.LayerNorm(width)
        self.norm_sequence = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        _start_at_zero(self.out, self.down)

    def forward(self, slots: Tensor, sequence: Tensor) -> Tensor:
        if kernels.enabled():
            return self.fused(slots, sequence)
        batch, count, width = slots.shape
        heads = (self.num_heads, width // self.num_heads)
        q = self.q(self.norm_slots(slots)).view(batch, count, *heads).transpose(1, 2)
        kv = self.kv(self.norm_sequence(sequence)).view(batch, sequence.shape[1], 2, *heads)
        k, v = kv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v)
        slots = slots + self.out(attended.transpose(1, 2).reshape(batch, count, width))
        return slots + self.down(functional.gelu(self.up(self.norm2(slots))))

    def fused(self, slots: Tensor, sequence: Tensor) -> Tensor:
        """`forward` in fused kernels."""
        from rsd_policy.kernels.transformer import Affine, attention, feed_forward, linear

        batch, count, width = slots.shape
        heads = (self.num_heads, width // self.num_heads)
        q = linear(slots, Affine.of(self.q), norm=self.norm_slots).view(batch, count, *heads)
        kv = linear(sequence, Affine.of(self.kv), norm=self.norm_sequence).view(batch, sequence.shape[1], 2, *heads)
        slots = linear(attention(q, *kv.unbind(2)), Affine.of(self.out), residual=slots)
        return feed_forward(slots, self.norm2, Affine.of(self.up), Affine.of(self.down))


class TextEncoder(nn.Module):
    """Word ids [B, MAX_WORDS] -> [B, text_tokens, width]; padding is masked out."""

    def __init__(self, vocabulary_size: int, text_width: int, text_tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, text_width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.position = nn.Parameter(torch.randn(MAX_WORDS + text_tokens, text_width) * 0.02)
        self.queries = nn.Parameter(torch.randn(text_tokens, text_width) * 0.02)
        self.layers = nn.ModuleList(Block(text_width, 3) for _ in range(2))
        self.out = nn.Linear(text_width, width)
        self.text_tokens = text_tokens

    def forward(self, words: Tensor) -> Tensor:
        batch = len(words)
        x = torch.cat([self.embedding(words), self.queries.expand(batch, -1, -1)], dim=1) + self.position
        keep = functional.pad(words != 0, (0, self.text_tokens), value=True)
        for layer in self.layers:
            x = layer(x, mask=keep[:, None, None, :])
        return self.out(x[:, -self.text_tokens :])


@dataclass(frozen=True)
class _EncodedText:
    """What a text encoder made of some words, with the very weights that it had.

    The weights are held, so that no others can come to lie at their addresses; and torch counts every change in place.

    Attributes:
        words: bytes of the ids [B, MAX_WORDS].
        weights: the encoder's parameters, sharing their memory. versions: torch's counts of their changes.
        tokens: [B, text_tokens, width].
    """

    words: bytes
    weights: list[Tensor]
    versions: list[int]
    tokens: Tensor

    def holds(self, words: bytes, weights: list[Tensor]) -> bool:
        """These words, read with these weights on this device, give `tokens`."""
        return words == self.words and all(
            now.is_set_to(then) and now._version == version
            for now, then, version in zip(weights, self.weights, self.versions, strict=True)
        )


class MiniBackbone(nn.Module):
    """The small backbone; see the module's docstring for its sequence.

    Args:
        config: sizes and vocabulary.
        proprio_mean: [8 or 10], subtracted from the state.
        proprio_std: [8 or 10], divides the state.
    """

    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(self, config: MiniConfig, proprio_mean: Tensor, proprio_std: Tensor) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = WordTokenizer(config.vocabulary)
        self.num_layers = config.num_layers
        self.hidden_size = config.width
        self.slots = self.horizon = config.horizon
        self.register_buffer("proprio_mean", proprio_mean.float(), persistent=False)
        self.register_buffer("proprio_std", proprio_std.float(), persistent=False)
        whole = config.image_size // 16
        halvings = [{whole: 0, whole // 2: 1}[grid] for grid in config.grids]
        self.stems = nn.ModuleDict(
            {
                name: ConvStem(config.stem_channels, config.width, count)
                for name, count in zip(CAMERAS, halvings, strict=True)
            }
        )
        self.proprio = nn.Sequential(
            nn.Linear(STATES[config.state], config.width), nn.GELU(), nn.Linear(config.width, config.width)
        )
        self.text = TextEncoder(self.tokenizer.size, config.text_width, config.text_tokens, config.width)
        length = sum(grid**2 for grid in config.grids) + 1 + config.text_tokens + config.horizon
        self.position = nn.Parameter(torch.randn(length, config.width) * 0.02)
        self.slot = nn.Parameter(torch.randn(config.horizon, config.width) * 0.02)
        self.layers = nn.ModuleList(Block(config.width, config.num_heads) for _ in range(config.num_layers))
        self.readers = nn.ModuleList(SlotReader(config.width, config.num_heads) for _ in range(config.exit_readers))
        self._encoded_text: _EncodedText | None = None

    def stage(self, observations: list[Observation]) -> dict[str, NDArray[Any]]:
        """Images, states and word ids of a batch.

        Where all frames have twice the model's size in both directions, as the simulator's have, they go as they are
        and `prepare` halves them: that costs a GPU next to nothing, and the host as much as two of its layers there.

        Returns:
            "images.CAMERA" uint8 [B, H, W, 3], "proprio" float32 [B, 8], "words" int64 [B, MAX_WORDS].

        Raises:
            ObservationError: as `preprocess`.
        """
        size = self.config.image_size
        by_camera = {name: [camera_frame(observation, name) for observation in observations] for name in CAMERAS}
        whole = all(frame.shape[:2] == (2 * size, 2 * size) for frames in by_camera.values() for frame in frames)
        staged: dict[str, NDArray[Any]] = {}
        for name, frames in by_camera.items():
            sized = frames if whole else [resize_frame(frame, size) for frame in frames]
            staged[f"images.{name}"] = sized[0][None] if len(sized) == 1 else np.stack(sized)
        staged["proprio"] = np.stack([state_of(observation, self.config.state) for observation in observations])
        staged["words"] = np.array([self.tokenizer(o.instruction) for o in observations], dtype=np.int64)
        return staged

    def prepare(self, staged: dict[str, Tensor]) -> MiniInputs:
        """`stage`'s arrays on the backbone's device."""
        images = torch.stack([staged[f"images.{name}"] for name in CAMERAS], dim=1)
        if images.shape[2] != self.config.image_size:
            images = halved(images)
        return MiniInputs(images, staged["proprio"], staged["words"])

    def preprocess(self, observations: list[Observation]) -> MiniInputs:
        """Resize images to the model's size, tokenise instructions, stack.

        Raises:
            ObservationError: a camera is missing, an instruction has no word, or the state has another form.
        """
        size, device = self.config.image_size, self.position.device
        images = [np.stack([resize_frame(camera_frame(o, name), size) for name in CAMERAS]) for o in observations]
        words = [self.tokenizer(observation.instruction) for observation in observations]
        states = [state_of(observation, self.config.state) for observation in observations]
        return MiniInputs(
            images=torch.from_numpy(np.stack(images)).to(device),
            proprio=torch.from_numpy(np.stack(states)).to(device),
            words=torch.tensor(words, dtype=torch.int64).to(device),
        )

    def embed(self, inputs: MiniInputs) -> Tensor:
        """Token sequence before the first layer.

        Returns:
            [B, S, width], S = 80 vision + 1 proprio + text tokens + T slots.
        """
        pixels = inputs.images.to(self.position.dtype).permute(0, 1, 4, 2, 3) / 127.5 - 1.0
        return self.embed_pixels(pixels, inputs.proprio, inputs.words)

    def embed_pixels(self, pixels: Tensor, proprio: Tensor, words: Tensor) -> Tensor:
        """`embed` from pixels [B, cameras, 3, H, W] already in [-1, 1] (training augments them on the device)."""
        agentview, wrist, text, state = kernels.side_by_side(
            lambda: self.stems["agentview"](pixels[:, 0]),
            lambda: self.stems["wrist"](pixels[:, 1]),
            lambda: self._text_tokens(words),
            lambda: self.proprio((proprio - self.proprio_mean) / self.proprio_std)[:, None],
        )
        slots = self.slot.expand(len(pixels), -1, -1)
        return torch.cat([agentview, wrist, state, text, slots], dim=1) + self.position

    def _text_tokens(self, words: Tensor) -> Tensor:
        """Text features; the last batch's are kept in inference, where an instruction lasts for a whole episode."""
        # A recorded graph reads the text beside the images, which take longer: it has nothing to keep.
        if kernels.enabled():
            return self.text(words)
        weights = [weight.detach() for weight in self.text.parameters()]
        if not torch.is_inference_mode_enabled() or any(weight.is_inference() for weight in weights):
            return self.text(words)  # training changes the weights; inference tensors do not tell when they change
        key = words.cpu().numpy().tobytes()
        if self._encoded_text is None or not self._encoded_text.holds(key, weights):
            self._encoded_text = _EncodedText(key, weights, [weight._version for weight in weights], self.text(words))
        return self._encoded_text.tokens

    def forward_layers(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Run layers start .. stop-1. `forward_layers(forward_layers(x, 0, k), k, N)` is `forward_layers(x, 0, N)`."""
        for layer in self.layers[start:stop]:
            x = layer(x)
        return x

    def late_hidden(self, x: Tensor, start: int) -> Tensor:
        """The slots after layers start .. N-1: [B, T, width]."""
        if not kernels.enabled():
            return self.action_hidden(self.forward_layers(x, start, self.num_layers))
        last = self.layers[self.num_layers - 1]
        assert isinstance(last, Block)
        return last.fused(self.forward_layers(x, start, self.num_layers - 1), only_last=self.slots)

    def action_hidden(self, x: Tensor) -> Tensor:
        """Hidden states of the action slots: [B, T, width]."""
        return x[:, -self.slots :]

    def exit_hidden(self, x: Tensor) -> Tensor:
        """The slots after layer k-1, refined by the readers: [B, T, width]."""
        slots = self.action_hidden(x)
        for reader in self.readers:
            slots = reader(slots, x)
        return slots


def camera_frame(observation: Observation, name: str) -> NDArray[np.uint8]:
    """A camera's frame.

    Raises:
        ObservationError: it is missing.
    """
    missing = [camera for camera in CAMERAS if camera not in observation.images]
    if missing:
        raise ObservationError(
            f"missing camera(s) {missing}: expected {list(CAMERAS)}, got {sorted(observation.images)}"
        )
    return observation.images[name]


def halved(images: Tensor) -> Tensor:
    """uint8 [..., 2 H, 2 W, 3] -> [..., H, W, 3], as `resize_frame` halves: the mean of four pixels, halves up."""
    if kernels.enabled():
        from rsd_policy.kernels import stems

        return stems.halved(images)
    total = images.unflatten(-2, (-1, 2)).unflatten(-4, (-1, 2)).sum(dim=(-4, -2), dtype=torch.int32)
    return ((total + 2) >> 2).to(torch.uint8)
