"""Image augmentation on the training device."""

from __future__ import annotations

import torch
from torch import Tensor


def augment_images(images: Tensor, max_shift: int, colour: float) -> Tensor:
    """Randomly shift each camera and jitter brightness, contrast and colour balance of each sample.

    Args:
        images: uint8 [B, cameras, H, W, 3].
        max_shift: largest shift in pixels; borders repeat. Each camera of each sample draws its own.
        colour: relative strength of the jitter (0.2 means gains in 0.8 .. 1.2); both cameras share it.

    Returns:
        float32 [B, cameras, 3, H, W] in about [-1, 1].
    """
    batch, cameras, height, width, _ = images.shape
    device = images.device
    shift = torch.randint(-max_shift, max_shift + 1, (2, batch, cameras, 1), device=device)
    rows = (torch.arange(height, device=device) + shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + shift[1]).clamp(0, width - 1)
    sample = torch.arange(batch, device=device)[:, None, None, None]
    camera = torch.arange(cameras, device=device)[None, :, None, None]
    moved = images[sample, camera, rows[..., :, None], columns[..., None, :]]
    pixels = moved.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0

    def jitter(*shape: int) -> Tensor:
        return 1.0 + colour * (2.0 * torch.rand(*shape, device=device) - 1.0)

    mean = pixels.mean(dim=(2, 3, 4), keepdim=True)
    pixels = (pixels - mean) * jitter(batch, 1, 1, 1, 1) + mean
    pixels = (pixels + 1.0) * jitter(batch, 1, 3, 1, 1) * jitter(batch, 1, 1, 1, 1) - 1.0
    return pixels.clamp(-1.0, 1.0)
