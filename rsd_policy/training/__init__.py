"""Training: of `mini`, of heads on a frozen backbone, of the gate, and what these share."""
