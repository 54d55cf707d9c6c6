"""The RSD engine: draft at an early layer, verify with the full backbone, or skip when the gate allows."""
