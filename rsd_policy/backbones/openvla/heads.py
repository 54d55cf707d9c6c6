"""What OpenVLA-OFT adds to OpenVLA: the projector of the robot's state and the head that regresses actions.

Parameters are named as in `proprio_projector--*_checkpoint.pt` and `action_head--*_checkpoint.pt`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from rsd_policy.observation import ACTION_DIM, PROPRIO_DIM

RESIDUAL_BLOCKS = 2


class ProprioProjector(nn.Module):
    """Normalised state [B, 8] -> one token [B, hidden_size]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(PROPRIO_DIM, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, proprio: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(proprio)))


class ResidualBlock(nn.Module):
    """x + relu(linear(norm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class ResidualMLP(nn.Module):
    """LayerNorm -> Linear -> ReLU -> residual blocks -> LayerNorm -> Linear."""

    def __init__(self, width: int, hidden_size: int, out: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden_size)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden_size) for _ in range(RESIDUAL_BLOCKS))
        self.layer_norm2 = nn.LayerNorm(hidden_size)
        self.fc2 = nn.Linear(hidden_size, out)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1ActionHead(nn.Module):
    """Hidden states of the T*7 slots -> normalised actions, every step from the seven slots of that step."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.model = ResidualMLP(hidden_size * ACTION_DIM, hidden_size, ACTION_DIM)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T*7, hidden_size] -> [B, T, 7], normalised: motion in [-1, 1], gripper in [0, 1]."""
        batch, slots, width = hidden.shape
        return self.model(hidden.reshape(batch, slots // ACTION_DIM, ACTION_DIM * width))
