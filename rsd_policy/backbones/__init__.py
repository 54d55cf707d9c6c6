"""Backbones: transformer stacks that can be run layer range by layer range, so that an early exit can resume."""
