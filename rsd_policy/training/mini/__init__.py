"""Training of `mini` on demonstrations: frames in memory, augmentation, the loop, validation."""
