"""Compares a robot's state with what the policy was trained on, where a wrong convention would otherwise be silent."""

from __future__ import annotations

from collections.abc import Sequence

from rsd_policy.errors import ObservationError
from rsd_policy.observation import Observation
from rsd_policy.robots.contract import Contract
from rsd_policy.robots.state import unlike_training


class StateCheck:
    """Looks at every observation; the first one of something new (activation, episode) may be refused.

    Args:
        contract: says whether an unlike state is refused, warned of, or not looked at.
        statistics: mean and standard deviation [8] of the training's states; None when the checkpoint has none.
    """

    def __init__(self, contract: Contract, statistics: tuple[Sequence[float], Sequence[float]] | None) -> None:
        self._contract = contract
        self._statistics = statistics if contract.state_check != "off" else None
        self._accepted: object = None

    def check(self, observation: Observation, context: object) -> list[str]:
        """What in the state is unlike the training's, one sentence per number.

        Args:
            observation: the observation.
            context: equal for everything that belongs to one activation and episode.

        Raises:
            ObservationError: it is the first of its context, and the contract refuses such states.
        """
        if self._statistics is None:
            return []
        odd = unlike_training(observation.proprio, *self._statistics)
        if context != self._accepted:
            if odd and self._contract.state_check == "refuse":
                raise ObservationError(
                    f"the policy was not trained on states like this one: {'; '.join(odd)} Nothing is answered to it: "
                    f"correct the contract '{self._contract.robot}', or set state.check: warn in it"
                )
            self._accepted = context
        return odd
