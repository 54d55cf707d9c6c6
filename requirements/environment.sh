# Sourced by rsd and setup.sh (after `root` is set): which ROS is used, the environment that nodes run in, and the stamp
# that tells whether the set-up is current. Only builtins and coreutils: this runs at every start.

RSD_STAMP_FILE=$root/.venv/rsd-stamp
# Written by the set-up: "wheels", or the setup.bash of the system's ROS.
RSD_ROS_FILE=$root/.venv/rsd-ros

# Prints "wheels" or "system". A system ROS counts from Jazzy on: Humble and Iron lack what rclpy needs here.
rsd_ros_kind() {
    local known
    known=$(cat "$RSD_ROS_FILE" 2>/dev/null || true)
    case ${ROS_DISTRO:-} in
        jazzy | kilted | [l-z]*)
            # our own wheel environment exports ROS_DISTRO too; it is no system ROS. ROS 1 (noetic, say) exports version 1
            if [ -z "${RSD_WHEELS_ENVIRONMENT:-}" ] && [ "${ROS_VERSION:-2}" = 2 ] && { [ -f "/opt/ros/$ROS_DISTRO/setup.bash" ] || [ -n "${AMENT_PREFIX_PATH:-}" ]; }; then
                echo system
                return
            fi
            ;;
    esac
    # a .venv made on a system ROS stays on it in a shell that did not source ROS
    if [[ $known == /*/setup.bash && -f $known ]]; then echo system; else echo wheels; fi
}

# Makes the system's ROS available in this shell when the user did not source it.
rsd_source_system_ros() {
    [ -z "${AMENT_PREFIX_PATH:-}" ] || return 0
    local setup=/opt/ros/${ROS_DISTRO:-}/setup.bash
    [ -f "$setup" ] || setup=$(cat "$RSD_ROS_FILE" 2>/dev/null || true)
    [ -f "$setup" ] || return 0
    set +u
    # shellcheck disable=SC1090
    . "$setup"
    set -u
}

# Keeps the entries of a colon list that do not belong to an installed ROS (an old one would shadow the wheels), nor to
# an rsd that this one was started from.
rsd_without_ros() {
    local entry kept=
    local IFS=:
    for entry in $1; do
        [[ -z $entry || $entry == /opt/ros/* || $entry/ == "${RSD_ROOT:-$root}"/* ]] || kept=${kept:+$kept:}$entry
    done
    printf %s "$kept"
}

# Keeps those entries of a PYTHONPATH ($1) that belong to a ROS installation or overlay ($2: their prefixes). Nothing
# else of the user's comes before the packages of .venv: another numpy or a fork of LIBERO would be run unnoticed.
rsd_ros_python_path() {
    local entry prefix kept=
    local IFS=:
    for entry in $1; do
        for prefix in $2; do
            [ -n "$prefix" ] || continue
            # a package built with --symlink-install is imported from the workspace's build directory
            if [[ $entry == "${prefix%/}"/* || ($entry == */build/* && -e $prefix/share/${entry##*/}/package.xml) ]]; then
                kept=${kept:+$kept:}$entry
                break
            fi
        done
    done
    printf %s "$kept"
}

# Hash of everything that the set-up depends on. The place counts: a colcon install does not survive a move.
rsd_stamp() {
    local files=("$root"/requirements/*.txt "$root"/requirements/*.sh "$root"/ros2_ws/src/rsd_msgs/{CMakeLists.txt,package.xml}
        "$root"/ros2_ws/src/rsd_msgs/{msg,srv,action}/* "$root"/setup.py "$root"/setup.cfg "$root"/package.xml)
    # launch files and configurations are links to the sources: only which ones there are matters
    local linked=("$root"/launch/*.py "$root"/config/*.yaml)
    { cat "${files[@]}"; echo "$root $(rsd_ros_kind) ${linked[*]}"; } | sha256sum | cut -c1-64
}

# A container's user may have no name, no home, or one that cannot be written to: what ROS, matplotlib and numba
# write goes elsewhere then.
rsd_home() {
    [ -n "${USER:-}${LOGNAME:-}" ] || export USER=uid$(id -u)
    if [ -n "${HOME:-}" ] && [ -d "$HOME" ] && [ -w "$HOME" ]; then return 0; fi
    local own
    own=${TMPDIR:-/tmp}/rsd_policy-$(id -u)
    if ! mkdir -p -m 700 "$own" || [ ! -O "$own" ]; then return 0; fi
    export ROS_LOG_DIR=${ROS_LOG_DIR:-$own/ros} MPLCONFIGDIR=${MPLCONFIGDIR:-$own/matplotlib}
    export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$own/numba}
    if [ -z "${HOME:-}" ] || [ ! -d "$HOME" ]; then export HOME=$own; fi
}

# Exports what nodes and commands run in. Children must inherit it whole.
rsd_environment() {
    local venv=$root/.venv install=$root/ros2_ws/install site version python_path library_path
    site=$(echo "$venv"/lib/python3.*/site-packages)
    version=${site#"$venv"/lib/}
    version=${version%/site-packages}
    unset PYTHONHOME VIRTUAL_ENV_PROMPT
    rsd_home
    if [ "$(rsd_ros_kind)" = system ]; then
        rsd_source_system_ros
        python_path=$(rsd_ros_python_path "${PYTHONPATH:-}" "${AMENT_PREFIX_PATH:-}")
        library_path=${LD_LIBRARY_PATH:-}
        export AMENT_PREFIX_PATH=$install:${AMENT_PREFIX_PATH:-}
    else
        python_path=$(rsd_ros_python_path "$(rsd_without_ros "${PYTHONPATH:-}")" "$(rsd_without_ros "${AMENT_PREFIX_PATH:-}")")
        library_path=$venv/lib
        local libs
        for libs in "$site"/ros_*.libs; do library_path=$library_path:$libs; done
        local own
        own=$(rsd_without_ros "${LD_LIBRARY_PATH:-}")
        library_path=$library_path${own:+:$own}
        export AMENT_PREFIX_PATH=$install:$venv ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO=jazzy
        # the wheels would otherwise start every interpreter twice to set LD_LIBRARY_PATH
        export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 RSD_WHEELS_ENVIRONMENT=1
        unset CMAKE_PREFIX_PATH COLCON_PREFIX_PATH RMW_IMPLEMENTATION
    fi
    # PYTHONSAFEPATH (Python 3.11 on): a folder `libero` or `numpy` where rsd is called is not imported either
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1 RSD_ROOT=$root
    export PYTHONPATH=$root:$install/lib/$version/site-packages${python_path:+:$python_path}
    export LD_LIBRARY_PATH=$install/lib${library_path:+:$library_path}
}
