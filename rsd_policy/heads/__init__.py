"""Token heads: RFSQHead reads the full backbone, RFSQDraftModel an early layer."""

from rsd_policy.heads.rfsq_heads import RFSQDraftModel, RFSQHead

__all__ = ["RFSQDraftModel", "RFSQHead"]
