"""Tasks composed on the fly from what LIBERO's own scenes hold: other places, other goals, generated instructions."""
