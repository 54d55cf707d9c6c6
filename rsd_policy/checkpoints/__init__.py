"""Checkpoint directories: a manifest and safetensors files, each listed with its sha256."""
