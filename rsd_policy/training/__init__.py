"""Training of `mini`: demonstrations, augmentation, the training loop, validation and gate calibration."""
