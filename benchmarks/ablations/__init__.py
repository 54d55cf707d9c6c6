"""What each part of the policy is worth in closed loop."""
