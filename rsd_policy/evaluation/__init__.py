"""Closed-loop evaluation: which episodes, how they are run, where results are kept, and what is said about them."""
