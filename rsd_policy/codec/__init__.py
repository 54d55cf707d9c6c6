"""RFSQ action codec: integer tokens [levels, T, D] for continuous action chunks [T, D]."""

from rsd_policy.codec.rfsq import RFSQCodec

__all__ = ["RFSQCodec"]
