#!/usr/bin/env bash
# Builds ros2_ws with the interpreter of .venv, so that the installed nodes start with it. Called by setup.sh:
#   bash requirements/build_workspace.sh ROOT
set -euo pipefail
root=$1
. "$root/requirements/environment.sh"
rsd_environment
if [ "$(rsd_ros_kind)" = wheels ]; then export CMAKE_PREFIX_PATH=$root/.venv; fi
# packages are looked up in what is installed, not in a former build or in the source tree
export AMENT_PREFIX_PATH=${AMENT_PREFIX_PATH#"$root/ros2_ws/install:"} PYTHONPATH=${PYTHONPATH#"$root:"}
export MAKEFLAGS=${MAKEFLAGS:--j$(nproc)}
cd "$root/ros2_ws"
# --symlink-install: an installed node runs the sources as they are, edits need no rebuild
"$root/.venv/bin/python" -m colcon build --merge-install --symlink-install --base-paths src \
    --event-handlers console_direct+ \
    --cmake-args "-DPython3_EXECUTABLE=$root/.venv/bin/python" -DBUILD_TESTING=OFF
"$root/.venv/bin/python" "$root/requirements/quote_interpreter.py" install
