"""From the vision towers' features to the language model's embeddings."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class FusedProjector(nn.Module):
    """Two-layer GELU MLP of Prismatic's fused vision backbones, and one linear layer more.

    Parameters are named as under `projector.` in the checkpoint: fc1 [4 V, V], fc2 [L, 4 V], fc3 [L, L].

    Args:
        vision_width: V, both towers' widths together (2176).
        hidden_size: L, the language model's width (4096).
    """

    def __init__(self, vision_width: int = 2176, hidden_size: int = 4096) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, P, V] -> [B, P, L]."""
        return self.fc3(functional.gelu(self.fc2(functional.gelu(self.fc1(patches)))))
