"""ScriptedExpert gives up where it makes no progress: such an episode must not become a demonstration."""

from __future__ import annotations

from sim_bridge.expert import ScriptedExpert
from sim_bridge.expert.scripted import PHASE_STEPS
from sim_bridge.libero_env import LiberoEnv


def test_gives_up_in_a_phase_that_does_not_end_and_starts_anew_after_reset() -> None:
    with LiberoEnv("libero_spatial", 0, render=False) as env:
        env.reset(0)
        expert = ScriptedExpert(env, max_attempts=4)
        expert.reset()
        for _ in range(PHASE_STEPS):
            expert.act()  # the arm never moves
        assert expert.phase == "approach"
        expert.act()
        assert expert.failed
        expert.reset()
        expert.act()
        assert expert.phase == "approach"
