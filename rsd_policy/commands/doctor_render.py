"""Renders the first frames of an episode as `rsd eval` does; run by `rsd doctor` in a process of its own.

Prints one JSON object {"backend": str, "renderer": str, "milliseconds": float}.
"""

from __future__ import annotations

import json
import os
import sys
import time

from rsd_policy.errors import SetupError
from rsd_policy.faults import report
from sim_bridge.libero_env import WAIT_ACTION, LiberoEnv


def main() -> int:
    """Returns 0 when the frames of both cameras show something, else the exit status of what is wrong."""
    try:
        with LiberoEnv("libero_spatial", 0) as env:
            env.reset(0)
            start = time.perf_counter()
            env.step(WAIT_ACTION, render=True)
            elapsed = 1000 * (time.perf_counter() - start)
            for name, image in env.observe().images.items():
                if image.std() < 10:
                    raise SetupError(
                        f"camera {name}: expected a scene, got a frame of one colour; try MUJOCO_GL=osmesa"
                    )
            env.sim._render_context_offscreen.gl_ctx.make_current()
            from OpenGL import GL

            renderer = GL.glGetString(GL.GL_RENDERER).decode()
    except Exception as error:
        return report("rendering", error, debug=False)
    print(json.dumps({"backend": os.environ["MUJOCO_GL"], "renderer": renderer, "milliseconds": elapsed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
