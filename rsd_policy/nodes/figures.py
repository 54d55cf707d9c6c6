"""What a policy node tells of its inferences in /diagnostics."""

from __future__ import annotations

from rsd_policy.observation import ActionChunk


class InferenceFigures:
    """Counts since the node was made, of final chunks."""

    def __init__(self) -> None:
        self._chunks = self._compared = self._accepted = self._skipped = 0

    def add(self, chunk: ActionChunk) -> dict[str, object]:
        """Count a final chunk; returns the figures with it, by name."""
        self._chunks += 1
        self._compared += chunk.accepted is not None
        self._accepted += bool(chunk.accepted)
        self._skipped += chunk.skipped
        return {
            "chunks": self._chunks,
            "inference_ms": f"{chunk.stats.total_ms:.1f}",
            "first_action_ms": f"{chunk.stats.first_action_ms:.1f}",
            "acceptance_rate": f"{self._accepted / self._compared:.3f}" if self._compared else "not compared",
            "skip_rate": f"{self._skipped / self._chunks:.3f}",
        }
