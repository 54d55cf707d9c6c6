"""A scripted pick-and-place expert that works from the simulator's privileged state."""

from sim_bridge.expert.scripted import ScriptedExpert

__all__ = ["ScriptedExpert"]
