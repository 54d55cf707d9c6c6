"""What things cost in time."""
