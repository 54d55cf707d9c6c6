"""The contract of a robot: topics, images, state, alignment, and what an action means."""
