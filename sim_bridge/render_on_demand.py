"""Camera sensors that render only the frames that will be read.

Rendering two cameras takes ten times as long as a control step of physics, and a policy that executes chunks of 8 reads one
frame in eight. robosuite decides when, inside a control step, a camera is sampled; that moment is kept, so a frame is
identical to that of plain rendering. (Rendering after the step instead would show a later moment than the one that
published evaluations show.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sensor = Callable[[dict[str, Any]], NDArray[np.uint8]]


class RenderOnDemand:
    """Mixin placed before a robosuite environment class.

    Set `render_due` before `step` or a forced update of the observables; the cameras then render when robosuite samples
    them. Otherwise their sensors return the frame rendered last (black before the first).
    """

    render_due = False
    sim: Any

    def _create_camera_sensors(
        self, cam_name: str, cam_w: int, cam_h: int, cam_d: bool, cam_segs: Any, modality: str = "image"
    ) -> tuple[list[Sensor], list[str]]:
        # robosuite also samples every sensor once or twice while it builds its observables: nothing is due then
        sensors, names = super()._create_camera_sensors(  # type: ignore[misc]
            cam_name, cam_w=cam_w, cam_h=cam_h, cam_d=cam_d, cam_segs=cam_segs, modality=modality
        )
        return [self._on_demand(sensor, (cam_h, cam_w, 3)) for sensor in sensors], names

    def _on_demand(self, sensor: Sensor, shape: tuple[int, int, int]) -> Sensor:
        last: NDArray[np.uint8] = np.zeros(shape, dtype=np.uint8)

        def frame(obs_cache: dict[str, Any]) -> NDArray[np.uint8]:
            nonlocal last
            if self.render_due:
                # robosuite makes its context current only when it creates it: a second environment would draw into it
                self.sim._render_context_offscreen.gl_ctx.make_current()
                last = sensor(obs_cache)
            return last

        frame.__modality__ = sensor.__modality__  # type: ignore[attr-defined]
        return frame


def on_demand_class(environment: type, cache: dict[type, type] = {}) -> type:  # noqa: B006
    """The subclass of a robosuite environment class that renders on demand."""
    if environment not in cache:
        # LIBERO checks that the class has the name of the problem in the task file
        cache[environment] = type(environment)(environment.__name__, (RenderOnDemand, environment), {})
    return cache[environment]


def upright(frames: Mapping[str, NDArray[np.uint8]], camera: str) -> NDArray[np.uint8]:
    """A camera's frame turned by 180 degrees, as published LIBERO evaluations show it to the policy.

    Args:
        frames: robosuite's observations.
        camera: robosuite's camera name.

    Returns:
        uint8 [H, W, 3], RGB, contiguous.
    """
    return np.ascontiguousarray(frames[f"{camera}_image"][::-1, ::-1])
