"""Renders one frame of a small scene with the simulation's OpenGL back end; run by `rsd doctor` in its own process.

Prints one JSON object {"backend": str, "renderer": str, "milliseconds": float}.
"""

from __future__ import annotations

import json
import sys
import time

from sim_bridge.libero_assets import choose_renderer

SCENE = """
<mujoco>
  <asset>
    <material name="red" rgba="1 0 0 1" emission="1"/>
  </asset>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="front" pos="0 -2 1" xyaxes="1 0 0 0 0.447 0.894"/>
    <geom type="plane" size="1 1 0.1" rgba="0.2 0.2 0.8 1"/>
    <geom type="sphere" size="0.4" pos="0 0 0.4" material="red"/>
  </worldbody>
</mujoco>
"""


def main() -> int:
    """Returns 0 when the red ball of the scene is in the middle of the frame, else 1."""
    backend = choose_renderer()
    if backend == "disable":
        print("no OpenGL for rendering without a display was found", file=sys.stderr)
        return 1
    import mujoco  # binds itself to the back end that choose_renderer selected

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, 256, 256)
    from OpenGL import GL  # the context that answers exists from here on

    name = GL.glGetString(GL.GL_RENDERER).decode()
    renderer.update_scene(data, camera="front")
    renderer.render()  # the first frame compiles shaders
    start = time.perf_counter()
    renderer.update_scene(data, camera="front")
    frame = renderer.render()
    elapsed = 1000 * (time.perf_counter() - start)
    red, _, blue = (int(value) for value in frame[96:160, 96:160].reshape(-1, 3).mean(axis=0))
    renderer.close()
    if red < 2 * blue:
        print(f"{backend}: expected a red ball in the middle of the frame, got {red=} {blue=}", file=sys.stderr)
        return 1
    print(json.dumps({"backend": backend, "renderer": name, "milliseconds": elapsed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
