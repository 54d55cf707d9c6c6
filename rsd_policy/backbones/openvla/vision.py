"""The two vision towers of OpenVLA: DINOv2 with registers and SigLIP, fused on channels.

Both are plain pre-norm vision transformers over 14 x 14 px patches. A tower's features are its patch tokens after the
last block but one, without the final norm and without class and register tokens (timm's `get_intermediate_layers(x,
n={depth - 2})`, which Prismatic puts in place of `forward`). What lies behind that block is in the checkpoint but does
not influence the features; it is not built here, and `unused_parameters` names it.

Parameters are named as in the checkpoint below `vision_backbone.`: `featurizer.` is DINOv2, `fused_featurizer.` SigLIP,
below them timm's names, except that LayerScale's `gamma` is called `scale_factor`.
Sizes: timm 0.9.16, `vit_large_patch14_reg4_dinov2.lvd142m` and `vit_so400m_patch14_siglip_224`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_policy import kernels
from rsd_policy.errors import CheckpointError, ObservationError

NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of one vision transformer.

    Attributes:
        width: channels of a token.
        depth: blocks of the checkpoint; one fewer is run.
        heads: attention heads.
        mlp_width: hidden units of a block's MLP.
        registers: register tokens.
        class_token: there is a class token.
        layer_scale: residual branches are multiplied by a learned vector.
        attention_pool: the checkpoint holds an attention-pooling head (unused).
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    registers: int = 0
    class_token: bool = False
    layer_scale: bool = False
    attention_pool: bool = False

    def __post_init__(self) -> None:
        if self.depth < 2:
            raise CheckpointError(f"vision tower: expected at least 2 blocks, got {self.depth}")
        if self.width % self.heads:
            raise CheckpointError(f"vision tower: expected a width divisible by {self.heads} heads, got {self.width}")


DINOV2_LARGE = TowerConfig(1024, 24, 16, 4096, registers=4, class_token=True, layer_scale=True)
SIGLIP_SO400M = TowerConfig(1152, 27, 16, 4304, attention_pool=True)


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of both towers; the defaults are those of every public OpenVLA checkpoint."""

    dino: TowerConfig = field(default=DINOV2_LARGE)
    siglip: TowerConfig = field(default=SIGLIP_SO400M)
    image_size: int = 224
    patch_size: int = 14

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise CheckpointError(
                f"vision towers: expected an image size divisible by the patch size {self.patch_size}, "
                f"got {self.image_size}"
            )

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> VisionConfig:
        """Build from JSON: `dino` and `siglip` are objects with TowerConfig's fields; what is missing has its default.

        Raises:
            CheckpointError: an entry is unknown or of the wrong type.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(entry) - known):
            raise CheckpointError(f"vision sizes: expected entries among {sorted(known)}, got {unknown}")
        try:
            towers = {name: TowerConfig(**entry[name]) for name in ("dino", "siglip") if name in entry}
            return cls(**{**entry, **towers})
        except TypeError as error:
            raise CheckpointError(f"vision sizes: {error}") from error

    @property
    def patches(self) -> int:
        """Patch tokens of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def width(self) -> int:
        """Channels of the fused features."""
        return self.dino.width + self.siglip.width


class Attention(nn.Module):
    """Multi-head self-attention without mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))

    def fused(self, x: Tensor) -> Tensor:
        """`forward`, in bf16 with GELU in the product's epilogue."""
        from rsd_policy.kernels.transformer import gelu_of_product

        if x.dtype != torch.bfloat16:
            return self.forward(x)
        return self.fc2(gelu_of_product(x, self.fc1.weight, self.fc1.bias))


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.attn = Attention(config.width, config.heads)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.mlp = Mlp(config.width, config.mlp_width)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """[N, 3, S, S] -> [N, patches, width] in raster order."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        if kernels.enabled():
            return self._product(images)
        return self.proj(images).flatten(2).transpose(1, 2)

    def _product(self, images: Tensor) -> Tensor:
        """`forward` as one matrix product over patches, whose length is padded to what products like."""
        size, weight, bias = self.proj.kernel_size[0], self.proj.weight.flatten(1), self.proj.bias
        patches = images.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        patches = patches.flatten(3).flatten(1, 2)
        missing = -weight.shape[1] % 8
        return functional.linear(functional.pad(patches, (0, missing)), functional.pad(weight, (0, missing)), bias)


class VisionTower(nn.Module):
    """One vision transformer up to its last block but one.

    Position embeddings are added to the patches only, not to class and register tokens (timm's `no_embed_class`).
    """

    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None

    def __init__(self, config: TowerConfig, image_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.width, patch_size)
        self.pos_embed = nn.Parameter(torch.randn(1, (image_size // patch_size) ** 2, config.width) * 0.02)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width)) if config.registers else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth - 1))
        self.prefix = int(config.class_token) + config.registers

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, patches, width]."""
        x = self.patch_embed(images) + self.pos_embed
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*prefix, x], dim=1)
        if kernels.enabled():
            return self._fused_blocks(x)[:, self.prefix :]
        for block in self.blocks:
            x = block(x)
        return x[:, self.prefix :]

    def _fused_blocks(self, x: Tensor) -> Tensor:
        """All blocks, with each residual, its LayerScale and the norm behind it in one kernel."""
        from rsd_policy.kernels.vision import add_norm

        blocks = [block for block in self.blocks if isinstance(block, Block)]
        normed = blocks[0].norm1(x)
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            factors = [ls.scale_factor if isinstance(ls, LayerScale) else None for ls in (block.ls1, block.ls2)]
            x, normed = add_norm(x, block.attn(normed), factors[0], block.norm2)
            branch = block.mlp.fused(normed)
            if following is None:
                return x + block.ls2(branch)
            x, normed = add_norm(x, branch, factors[1], following.norm1)
        return x


class DinoSigLIPVision(nn.Module):
    """Both towers over all images of a batch at once."""

    def __init__(self, config: VisionConfig | None = None) -> None:
        super().__init__()
        self.config = config or VisionConfig()
        sizes = (self.config.image_size, self.config.patch_size)
        self.featurizer = VisionTower(self.config.dino, *sizes)
        self.fused_featurizer = VisionTower(self.config.siglip, *sizes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features of every image.

        Args:
            pixels: [B, n_images, 6, S, S]; of each image's channels, the first three are normalised for DINOv2, the
                last three for SigLIP. Cast to the parameters' dtype, as the reference does.

        Returns:
            [B, n_images * patches, width]: image after image, patches in raster order; of the channels, DINOv2's come
            first.

        Raises:
            ObservationError: the pixels have another shape.
        """
        size = self.config.image_size
        if pixels.ndim != 5 or pixels.shape[2:] != (6, size, size):
            raise ObservationError(f"pixels: expected [batch, images, 6, {size}, {size}], got {list(pixels.shape)}")
        batch, images = pixels.shape[:2]
        flat = pixels.to(self.featurizer.pos_embed.dtype).flatten(0, 1)
        towers = kernels.side_by_side(lambda: self.featurizer(flat[:, :3]), lambda: self.fused_featurizer(flat[:, 3:]))
        features = torch.cat(towers, dim=2)
        return features.view(batch, images * self.config.patches, self.config.width)


def unused_parameters(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Parameters that a checkpoint holds below `vision_backbone.` and that do not influence the features.

    Per tower: the last block, the final norm, and SigLIP's attention-pooling head. Together with the parameters of
    `DinoSigLIPVision` these are all; any other name is a mistake.

    Returns:
        name -> shape.
    """
    unused: dict[str, tuple[int, ...]] = {}
    for prefix, tower in (("featurizer", config.dino), ("fused_featurizer", config.siglip)):
        with torch.device("meta"):
            last = Block(tower).state_dict()
        unused |= {f"{prefix}.blocks.{tower.depth - 1}.{name}": tuple(value.shape) for name, value in last.items()}
        unused |= {f"{prefix}.norm.{name}": (tower.width,) for name in ("weight", "bias")}
        if tower.attention_pool:
            pool = _attention_pool_shapes(tower.width, tower.mlp_width)
            unused |= {f"{prefix}.attn_pool.{name}": shape for name, shape in pool.items()}
    return unused


def _attention_pool_shapes(width: int, mlp_width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"latent": (1, 1, width)}
    for layer, (outputs, inputs) in {
        "q": (width, width),
        "kv": (2 * width, width),
        "proj": (width, width),
        "mlp.fc1": (mlp_width, width),
        "mlp.fc2": (width, mlp_width),
    }.items():
        shapes |= {f"{layer}.weight": (outputs, inputs), f"{layer}.bias": (outputs,)}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}
