"""Heads: RFSQHead reads the full backbone, RFSQDraftModel an early layer; DeviationPredictor judges the draft."""

from rsd_policy.heads.deviation import DeviationPredictor
from rsd_policy.heads.rfsq_heads import RFSQDraftModel, RFSQHead

__all__ = ["DeviationPredictor", "RFSQDraftModel", "RFSQHead"]
