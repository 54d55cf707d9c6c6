"""Bags: reading, recording, replaying and comparing what robots did."""
