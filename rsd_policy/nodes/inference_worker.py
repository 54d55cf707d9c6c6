"""The thread in which a policy node infers: always on the newest request, one at a time."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray

from rsd_policy.errors import RSDError
from rsd_policy.nodes.messages import to_nanoseconds
from rsd_policy.observation import POSE_DIM, PROPRIO_DIM, ActionChunk, Observation
from rsd_policy.robots.composition import Composer
from rsd_policy.robots.contract import Contract

SWITCH_INTERVAL_S = 0.0005
"""Longest time that a thread which wants to run waits for another one's Python code."""

END_TIMEOUT_S = 5.0
"""The inference that is running at the end is awaited this long."""


class Engine(Protocol):
    """What the worker needs of RSDInferenceEngine."""

    totals: Any

    def stream(self, observation: Observation) -> Any: ...

    def reset(self) -> None: ...

    def executed(self, action: NDArray[np.float32] | None) -> None: ...


@dataclass(frozen=True)
class Request:
    """One observation to answer, as messages: they are decoded in the worker's thread.

    Attributes:
        stamp: of the observation.
        episode: number of the simulated episode; 0 outside of one.
        activity: counts activations and goals: each of them starts something new, as an episode does.
        instruction: what to do.
        messages: input of the contract -> message.
        composer: makes the observation of them.
        executed: [7], the command that was executed last before the observation; None when that is not known.
    """

    stamp: Time
    episode: int
    activity: int
    instruction: str
    messages: Mapping[str, Any]
    composer: Composer
    executed: NDArray[np.float32] | None = None

    def observation(self) -> Observation:
        """Decode.

        Raises:
            ObservationError: an image or the robot state is malformed.
        """
        return self.composer.observation(self.messages, self.instruction, to_nanoseconds(self.stamp))


class InferenceWorker:
    """Loads an engine and answers requests with it, all in one thread of its own.

    Args:
        make: loads the engine.
        contract: of the robot.
        image_size: height and width of the images for the warm-up, px.
        check: called in the worker's thread with each observation before it is answered; what it raises refuses it.
        on_chunk: called in the worker's thread with each chunk; the inference is broken off when it returns False.
        on_error: called in the worker's thread when a request could not be answered.
        on_death: called in the worker's thread with an error that is nobody's plan; the thread ends after it.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        contract: Contract,
        *,
        image_size: int,
        check: Callable[[Request, Observation], None],
        on_chunk: Callable[[Request, ActionChunk], bool],
        on_error: Callable[[Request, RSDError], None],
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._make = make
        self._contract = contract
        self._image_size = image_size
        self._check = check
        self._on_chunk, self._on_error, self._on_death = on_chunk, on_error, on_death
        self._condition = threading.Condition()
        self._request: Request | None = None
        self._closing = False
        self._context: tuple[int, int] | None = None
        self._engine: Engine | None = None
        self.busy_since: float | None = None
        """Start of the inference that is running, s of time.monotonic(); None when none is."""
        self.ready: Future[None] = Future()
        # Python hands the interpreter from thread to thread every 5 ms by default; a request would wait for that while
        # the executor prepares its next wait (0.4 ms less until the inference starts, measured).
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Answer this next; a request that has not been begun yet is replaced."""
        with self._condition:
            self._request = request
            self._condition.notify()

    def discard(self) -> None:
        """Forget the request that has not been begun yet."""
        with self._condition:
            self._request = None

    @property
    def fell_back(self) -> bool:
        """The audit found the gate's promise broken: every chunk is verified."""
        return self._engine is not None and bool(self._engine.totals.fell_back)

    def close(self) -> None:
        """End after the inference that is running; one that hangs is left to the end of the process."""
        with self._condition:
            self._closing = True
            self._request = None
            self._condition.notify()
        self._thread.join(END_TIMEOUT_S)

    def _run(self) -> None:
        try:
            engine = self._make()
            self._warm_up(engine)
            self._engine = engine
            # What is loaded by now stays: looking through it at every full collection would hold up an inference.
            gc.freeze()
        except BaseException as error:  # raised again where the result is awaited
            self.ready.set_exception(error)
            return
        self.ready.set_result(None)
        try:
            while True:
                with self._condition:
                    self._condition.wait_for(lambda: self._closing or self._request is not None)
                    request, self._request = self._request, None
                    if self._closing or request is None:
                        return
                self.busy_since = time.monotonic()
                self._answer(engine, request)
                self.busy_since = None
        except BaseException as error:  # handed over; a dead thread in a live node would be worse
            self._on_death(error)

    def _warm_up(self, engine: Engine) -> None:
        """One inference on a black image, so that the first real one is as fast as the others."""
        black = np.zeros((self._image_size, self._image_size, 3), dtype=np.uint8)
        observation = Observation(
            images={camera.name: black for camera in self._contract.cameras},
            proprio=np.zeros(PROPRIO_DIM, dtype=np.float32),
            instruction="do nothing",
            pose=np.zeros(POSE_DIM, dtype=np.float32),
        )
        for _ in engine.stream(observation):
            pass
        engine.reset()

    def _answer(self, engine: Engine, request: Request) -> None:
        try:
            context = (request.episode, request.activity)
            if context != self._context:
                engine.reset()
                self._context = context
            if request.executed is not None:
                engine.executed(request.executed)
            observation = request.observation()
            self._check(request, observation)
            for chunk in engine.stream(observation):
                if not self._on_chunk(request, chunk):
                    return
        except RSDError as error:
            self._on_error(request, error)
