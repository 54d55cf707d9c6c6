"""OpenVLA and OpenVLA-OFT: modules that load the public checkpoints unchanged."""
