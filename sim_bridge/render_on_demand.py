"""Camera sensors that render only the frames that will be read.

Rendering two cameras takes ten times as long as a control step of physics, and a policy that executes chunks of 8 reads
one frame in eight. robosuite decides when, inside a control step, a camera is sampled (2 ms before its end after a
canonical reset); that moment is kept, so a frame is identical to that of plain rendering.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    _Environment = Any
else:
    _Environment = object

Sensor = Callable[[dict[str, Any]], NDArray[np.uint8]]

_one_at_a_time = threading.Lock()


class RenderOnDemand(_Environment):
    """Mixin placed before a robosuite environment class.

    Set `render_due` before a step; its cameras then render when robosuite samples them. Otherwise their sensors return
    the frame rendered last (black before the first). Several environments may render in one process, from any thread.
    """

    render_due = False
    sim: Any

    def _initialize_sim(self, xml_string: str | None = None) -> None:
        super()._initialize_sim(xml_string)
        if self.has_offscreen_renderer:
            # the default framebuffer is 640x480; clearing and resolving what no frame shows costs a tenth of the time
            size = self.sim.model.vis.global_
            size.offwidth, size.offheight = max(self.camera_widths), max(self.camera_heights)

    def _create_camera_sensors(
        self, cam_name: str, cam_w: int, cam_h: int, cam_d: bool, cam_segs: Any, modality: str = "image"
    ) -> tuple[list[Sensor], list[str]]:
        # robosuite also samples every sensor once while it builds its observables: nothing is due then
        sensors, names = super()._create_camera_sensors(
            cam_name, cam_w=cam_w, cam_h=cam_h, cam_d=cam_d, cam_segs=cam_segs, modality=modality
        )
        return [self._on_demand(sensor, (cam_h, cam_w, 3)) for sensor in sensors], names

    def _on_demand(self, sensor: Sensor, shape: tuple[int, int, int]) -> Sensor:
        last: NDArray[np.uint8] = np.zeros(shape, dtype=np.uint8)

        def frame(obs_cache: dict[str, Any]) -> NDArray[np.uint8]:
            nonlocal last
            if self.render_due:
                with _one_at_a_time:
                    # robosuite makes its context current only once, when it creates it: another environment, or another
                    # thread, would draw into the wrong one
                    self.sim._render_context_offscreen.gl_ctx.make_current()
                    try:
                        last = sensor(obs_cache)
                    finally:
                        release_context()
            return last

        frame.__modality__ = sensor.__modality__  # type: ignore[attr-defined]
        return frame

    def close(self) -> None:
        """Free the simulation and its OpenGL objects, which takes the context they live in."""
        with _one_at_a_time:
            context = self.sim._render_context_offscreen if self.sim is not None else None
            if context is not None:
                context.gl_ctx.make_current()
            del context
            super().close()


def release_context() -> None:
    """Take the current OpenGL context from this thread, so that another may use it. OSMesa's are free anyway."""
    from robosuite.utils import binding_utils

    if binding_utils._MUJOCO_GL != "egl":
        return
    from robosuite.renderers.context import egl_context

    egl = egl_context.EGL
    egl.eglMakeCurrent(egl_context.EGL_DISPLAY, egl.EGL_NO_SURFACE, egl.EGL_NO_SURFACE, egl.EGL_NO_CONTEXT)


def upright(frames: Mapping[str, NDArray[np.uint8]], camera: str) -> NDArray[np.uint8]:
    """A camera's frame turned by 180 degrees, as published LIBERO evaluations show it to the policy.

    Args:
        frames: robosuite's observations.
        camera: robosuite's camera name.

    Returns:
        uint8 [H, W, 3], RGB, contiguous.
    """
    return np.ascontiguousarray(frames[f"{camera}_image"][::-1, ::-1])
