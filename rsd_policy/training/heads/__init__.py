"""Training of RFSQ heads on a frozen backbone: hidden states on disk, then both heads."""
