"""A policy in memory: backbone, heads, codec and manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from rsd_policy.backbones.base import Backbone
from rsd_policy.backbones.mini import MiniBackbone
from rsd_policy.codec import RFSQCodec
from rsd_policy.errors import CheckpointError
from rsd_policy.heads import DeviationPredictor, RFSQDraftModel, RFSQHead

if TYPE_CHECKING:
    from rsd_policy.backbones.openvla.reference import ReferencePolicy

NORMAL_98 = 4.653
"""Standard deviations between the first and the last percentile of a normal distribution."""


@dataclass
class Heads:
    """What makes a backbone a policy with residual speculative decoding.

    Attributes:
        head: main head, all levels.
        draft: early-exit head, coarse levels.
        codec: tokens <-> actions.
        exit_layer: k; the draft reads the hidden states after layers 0 .. k-1.
    """

    head: RFSQHead
    draft: RFSQDraftModel
    codec: RFSQCodec
    exit_layer: int


@dataclass
class Policy:
    """Everything the engine needs, on one device, in evaluation mode.

    Attributes:
        name: directory name of the checkpoint, or the hub id.
        backbone: gives `preprocess`, `embed`, `forward_layers`, `action_hidden`, `exit_hidden`.
        manifest: the checkpoint's manifest; of a policy of another project, its entry `architecture` alone.
        heads: RFSQ heads; None for a policy of another project, as long as none are trained for it.
        reference: the output head that such a policy came with, which answers in mode `baseline`.
        deviation: what the gate asks; None before `rsd calibrate`.
    """

    name: str
    backbone: Backbone
    manifest: dict[str, Any]
    heads: Heads | None = None
    reference: ReferencePolicy | None = None
    deviation: DeviationPredictor | None = None

    @property
    def head(self) -> RFSQHead:
        """Main head. Raises CheckpointError as `rsd` does."""
        return self.rsd.head

    @property
    def draft(self) -> RFSQDraftModel:
        """Early-exit head. Raises CheckpointError as `rsd` does."""
        return self.rsd.draft

    @property
    def codec(self) -> RFSQCodec:
        """Tokens <-> actions. Raises CheckpointError as `rsd` does."""
        return self.rsd.codec

    @property
    def exit_layer(self) -> int:
        """k. Raises CheckpointError as `rsd` does."""
        return self.rsd.exit_layer

    @property
    def rsd(self) -> Heads:
        """The heads.

        Raises:
            CheckpointError: the policy has none.
        """
        if self.heads is None:
            raise CheckpointError(
                f"policy '{self.name}' has no RFSQ heads: it answers in mode 'baseline' only; "
                f"train heads for it with `./rsd train-heads --policy {self.name}`"
            )
        return self.heads

    @property
    def mini(self) -> MiniBackbone:
        """The backbone of a policy whose backbone is trained here.

        Raises:
            CheckpointError: it is another one.
        """
        if not isinstance(self.backbone, MiniBackbone):
            raise CheckpointError(f"policy '{self.name}': expected backbone 'mini', got '{self.kind}'")
        return self.backbone

    @property
    def kind(self) -> str:
        """Name of the backbone: mini or openvla."""
        return str(self.manifest["architecture"]["backbone"])

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the backbone."""
        return next(cast("nn.Module", self.backbone).parameters()).dtype

    @property
    def horizon(self) -> int:
        """T, steps of a chunk."""
        return self.backbone.horizon

    def state_statistics(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation [8] of the states of the training; None when the policy reads none, or reads them
        in a form that cannot be said in a wrong way."""
        if isinstance(self.backbone, MiniBackbone):
            if self.backbone.config.state != "axis_angle":
                return None
            entry = self.manifest["proprio"]
            return entry["mean"], entry["std"]
        quantiles = cast("Any", self.backbone).units.proprio
        if quantiles is None:
            return None
        middle, width = (quantiles.q01 + quantiles.q99) / 2.0, quantiles.q99 - quantiles.q01
        return middle.tolist(), (width / NORMAL_98).tolist()

    def modules(self) -> dict[str, nn.Module]:
        """The parts whose weights the checkpoint holds, by their prefix; an external backbone is not among them."""
        modules: dict[str, nn.Module] = {"backbone": self.backbone} if isinstance(self.backbone, MiniBackbone) else {}
        if self.heads is not None:
            modules |= {"head": self.heads.head, "draft": self.heads.draft}
        return modules if self.deviation is None else modules | {"deviation": self.deviation}

    def drop_gate(self) -> None:
        """Make the policy one that was never calibrated: any change of its weights makes the gate's promise void."""
        self.deviation = None
        self.manifest["architecture"].pop("deviation", None)
        self.manifest["gate"] = None

    def to(self, device: torch.device) -> Policy:
        """Move all modules to a device; returns self."""
        for module in (self.backbone, self.reference, *self.modules().values()):
            if isinstance(module, nn.Module):
                module.to(device)
        return self
