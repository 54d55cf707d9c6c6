"""The digest under which a policy is known to runs and chunks."""

from __future__ import annotations

from rsd_policy.checkpoints.manifest import MANIFEST, external_source, resolve_checkpoint, sha256


def policy_digest(policy: str, base: str | None = None) -> str:
    """Hex SHA-256 of a checkpoint's manifest, which holds those of its files; or of what tells another project's apart.

    Args:
        policy, base: as `load_policy`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    source = external_source(policy)
    if source is None:
        return sha256(resolve_checkpoint(policy) / MANIFEST)
    from rsd_policy.checkpoints.external import identity  # imports torch

    return identity(source, base)
