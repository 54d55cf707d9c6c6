"""Images and weights that the fixture scripts and the tests make alike, from integers of seeded generators."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


def images() -> dict[str, NDArray[np.uint8]]:
    """Name -> uint8 [H, W, 3]: smooth, noisy and striped, sizes that are no multiple of 8, upsampled and kept."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:256, :256]
    v, u = np.mgrid[:480, :640]
    return {
        "gradient": np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8),
        "noise": rng.integers(0, 256, (256, 256, 3), dtype=np.uint8),
        "stripes": np.repeat(((x // 3 + y // 5) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2),
        "vga": np.stack([(u * 7 + v * 3) % 256, u * v // 50 % 256, (u - v) ** 2 // 300 % 256], axis=-1).astype(
            np.uint8
        ),
        "odd": rng.integers(0, 256, (61, 83, 3), dtype=np.uint8),
        "blocks": rng.integers(0, 256, (28, 28, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1),
        "tiny": rng.integers(0, 256, (9, 8, 3), dtype=np.uint8),
    }


def noise(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Uniform in [-1, 1] in steps of 1/1000, drawn from the name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (rng.integers(-1000, 1001, shape) / 1000).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A parameter by its name in the checkpoint; branches matter and activations stay of order one."""
    values = noise(name, shape)
    if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "scale_factor")):
        return 1 + values / 2
    if len(shape) == 1:
        return values / 4
    if name.endswith(("pos_embed", "cls_token", "reg_token", "latent")):
        return values
    return values * np.float32((3 / np.prod(shape[1:])) ** 0.5)
