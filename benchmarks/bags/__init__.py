"""What bags cost, and what they promise."""
