#!/usr/bin/env bash
# Creates .venv and builds ros2_ws, then runs rsd with the remaining arguments, if any. Called by rsd:
#   bash requirements/setup.sh ROOT [--clean] [-- RSD_ARGUMENTS...]
# Every part leaves a mark only when it is complete, so that calling again repairs a set-up that failed, was interrupted
# or was killed. Exit status: 0 done, 2 wrong arguments, 3 something is missing (what to do is printed), 130 interrupted.
set -euo pipefail
root=$1
shift
. "$root/requirements/environment.sh"
venv=$root/.venv
ws=$root/ros2_ws
log=$root/.rsd-setup.log
packages_stamp_file=$venv/rsd-packages
# While this exists, pip may have left half a package behind.
installing=$venv/rsd-installing
# While this exists, colcon may have left half a build behind.
building=$ws/.building

# The apt packages, and what tells that one is there already (any of the alternatives). "build" is needed to set up at
# all, "run" to import the simulation, "render" to render without a GPU driver.
apt_packages() {
    cat <<'END'
build  cmake             command:cmake
build  make              command:make
build  g++               command:g++
build  python3-venv      module:ensurepip
build  python3-dev       header:Python.h
run    libgl1            library:libGL.so.1
run    libglib2.0-0      library:libgthread-2.0.so.0
render libegl1           library:libEGL.so.1
render libegl-mesa0      library:libEGL_mesa.so.0,libEGL_nvidia.so.0
render libgl1-mesa-dri   file:/usr/lib/x86_64-linux-gnu/dri/swrast_dri.so,/usr/lib/x86_64-linux-gnu/libgallium*.so,/usr/lib/x86_64-linux-gnu/libEGL_nvidia.so.0
render libosmesa6        library:libOSMesa.so.8,libOSMesa.so.6
END
}

die() { # status, message lines
    local status=$1
    shift
    printf 'rsd: %s\n' "$@" >&2
    exit "$status"
}

say() { printf '%s\n' "$*"; }

# Runs a command in its own process group with its output in the log; shows the time it takes. Killed with this script.
child=
run() { # label, command...
    local label=$1 start=$SECONDS status=0
    shift
    printf '\n=== %s: %s\n' "$label" "$*" >>"$log"
    setsid "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    if [ -t 1 ]; then
        while kill -0 "$child" 2>/dev/null; do
            printf '\r\033[K      %s ... %ds  %.60s' "$label" "$((SECONDS - start))" "$(tail -n 1 "$log" | tr -cd '[:print:]')"
            sleep 0.5
        done
        printf '\r\033[K'
    fi
    wait "$child" || status=$?
    child=
    if [ "$status" -ne 0 ]; then
        say "      $label failed (status $status); the end of $log:"
        tail -n 25 "$log" | sed 's/^/        /'
        return "$status"
    fi
    say "      $label: $((SECONDS - start)) s"
}

interrupted() {
    trap '' INT TERM HUP
    if [ -n "$child" ]; then
        kill -TERM -- "-$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    printf "\nrsd: set-up interrupted; the same command goes on from here\n"
    exit 130
}

# --- which python ------------------------------------------------------------------------------------------------

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

has_headers() { "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' 2>/dev/null; }

# The prefix of the system's ROS that holds rclpy.
ros_prefix() {
    local entry
    local IFS=:
    for entry in ${AMENT_PREFIX_PATH:-}; do
        if compgen -G "$entry/lib/python3.*/site-packages/rclpy" >/dev/null; then
            printf %s "$entry"
            return
        fi
    done
}

# Prints the interpreter for a new .venv: RSD_PYTHON, the one that the system's ROS was built for, or the first 3.10-3.12
# found, preferring one that has venv and headers already.
choose_python() {
    local candidate wanted
    if [ -n "${RSD_PYTHON:-}" ]; then
        wanted=$(python_version "$RSD_PYTHON") || die 3 "RSD_PYTHON=$RSD_PYTHON does not run"
        case $wanted in
            3.1[0-2]) command -v "$RSD_PYTHON"; return ;;
            *) die 3 "RSD_PYTHON=$RSD_PYTHON is Python $wanted; expected 3.10, 3.11 or 3.12" ;;
        esac
    fi
    if [ "$kind" = system ]; then
        wanted=$(compgen -G "$(ros_prefix)/lib/python3.*/site-packages/rclpy" | head -n 1 | sed 's#.*/lib/\(python3\.[0-9]*\)/.*#\1#')
        for candidate in "/usr/bin/$wanted" "$wanted" python3; do
            if [ "python$(python_version "$candidate")" = "$wanted" ]; then command -v "$candidate"; return; fi
        done
        die 3 "ROS $ROS_DISTRO was built for $wanted, which was not found"
    fi
    local usable=()
    for candidate in python3 python3.12 python3.11 python3.10 /usr/bin/python3; do
        case $(python_version "$candidate") in
            3.1[0-2])
                if has_venv "$candidate" && has_headers "$candidate"; then command -v "$candidate"; return; fi
                usable+=("$candidate")
                ;;
        esac
    done
    # with the system's own interpreter apt can add what is missing
    for candidate in /usr/bin/python3 "${usable[@]}"; do
        case $(python_version "$candidate") in 3.1[0-2]) command -v "$candidate"; return ;; esac
    done
}

# --- 1: system packages ------------------------------------------------------------------------------------------

is_there() { # test of apt_packages
    local what=${1%%:*} alternative
    local IFS=,
    for alternative in ${1#*:}; do
        case $what in
            command) command -v "$alternative" >/dev/null && return 0 ;;
            library) [[ $libraries == *"$alternative "* ]] && return 0 ;;
            file) compgen -G "$alternative" >/dev/null && return 0 ;;
            module) [ -n "$python" ] && has_venv "$python" && return 0 ;;
            header) [ -n "$python" ] && has_headers "$python" && return 0 ;;
        esac
    done
    return 1
}

missing_packages() { # classes, e.g. "build run"
    local class name test_
    libraries=$(/sbin/ldconfig -p | awk '{ printf "%s ", $1 }')
    [ -n "$python" ] || [[ $1 != *build* ]] || echo python3
    while read -r class name test_; do
        [[ " $1 " == *" $class "* ]] || continue
        is_there "$test_" || apt_name "$name"
    done < <(apt_packages)
}

# python3-venv and python3-dev belong to the default interpreter; /usr/bin/python3.x of another version has its own.
apt_name() {
    local version
    case $1 in
        python3-*)
            version=$([ -n "$python" ] && python_version "$python" || true)
            if [ -n "$version" ] && [ "$version" != "$(python_version /usr/bin/python3)" ]; then
                echo "python$version-${1#python3-}"
                return
            fi
            ;;
    esac
    echo "$1"
}

system_packages() {
    local missing required
    missing=$(missing_packages "build run render" | xargs)
    [ -n "$missing" ] || { say "      all there"; return 0; }
    required=$(missing_packages "build run" | xargs)
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        say "      installing: $missing"
        export DEBIAN_FRONTEND=noninteractive
        # shellcheck disable=SC2086
        if run "apt-get update" apt-get update && run "apt-get install" apt-get install -y --no-install-recommends $missing; then
            python=$(choose_python)
            missing=$(missing_packages "build run render" | xargs)
            required=$(missing_packages "build run" | xargs)
        fi
    fi
    [ -z "$required" ] || die 3 "missing system packages: $required" \
        "install them, then call again:  sudo apt-get install $missing"
    [ -z "$missing" ] || say "      without $missing (rendering may lack a backend; ./rsd doctor tells):  sudo apt-get install $missing"
}

# --- 2 and 3: .venv ----------------------------------------------------------------------------------------------

# A large directory is first renamed, so that a kill never leaves half of it under its name.
discard() {
    if [ -e "$1" ]; then mv "$1" "$1.old.$$"; fi
    rm -rf "$1".old.*
}

venv_usable() {
    [ ! -e "$installing" ] || return 1
    case $(python_version "$venv/bin/python") in 3.*) ;; *) return 1 ;; esac
    env -u PYTHONPATH "$venv/bin/python" -m pip --version >/dev/null 2>&1 || return 1
    # made for another ROS, or copied from another place
    [ ! -e "$RSD_ROS_FILE" ] || [ "$(cat "$RSD_ROS_FILE")" = "$ros" ] || return 1
    [ ! -e "$packages_stamp_file" ] || [[ $(cat "$packages_stamp_file") == *" $root" ]]
}

create_venv() {
    if venv_usable; then say "      kept"; return 0; fi
    discard "$venv"
    local options=()
    [ "$kind" = wheels ] || options=(--system-site-packages)
    # the mark is written before pip exists in there: a venv killed while being made is made again
    mkdir "$venv" && : >"$installing"
    run "Python $(python_version "$python") from $python" "$python" -m venv "${options[@]}" "$venv" ||
        die 3 "no virtual environment could be made with $python; install python3-venv or set RSD_PYTHON to another Python 3.10-3.12"
    printf '%s\n' "$ros" >"$RSD_ROS_FILE"
}

# Without an NVIDIA GPU the CPU build of torch is enough and saves gigabytes. pip prefers it by itself (2.x+cpu sorts
# above 2.x) where an index offers it; PyTorch's own is added when it answers.
torch_options() {
    [ ! -e /dev/nvidia0 ] && [ ! -e /dev/dxg ] || return 0
    local index=https://download.pytorch.org/whl/cpu
    if "$venv/bin/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$index/torch/" 2>/dev/null; then
        echo "--extra-index-url=$index"
    fi
}

python_packages() {
    local wanted locks=(-r "$root/requirements/lock.txt")
    wanted="$(cat "$root"/requirements/{lock,ros-wheels}.txt | sha256sum | cut -c1-64) $root"
    if [ "$(cat "$packages_stamp_file" 2>/dev/null)" = "$wanted" ]; then say "      kept"; return 0; fi
    : >"$installing"
    [ "$kind" = system ] || locks+=(-r "$root/requirements/ros-wheels.txt")
    # pip must see this environment only: ROS's PYTHONPATH would make it count packages that are not in it
    local pip=(env -u PYTHONPATH -u LD_LIBRARY_PATH PYTHONNOUSERSITE=1 "$venv/bin/python" -m pip install --disable-pip-version-check)
    local hint="did the network or the package index fail? call again"
    # shellcheck disable=SC2046
    run "pip" "${pip[@]}" $(grep -E '^(pip|setuptools|wheel)==' "$root/requirements/lock.txt") || die 3 "$hint"
    # shellcheck disable=SC2046
    run "torch" "${pip[@]}" --no-deps $(torch_options) "$(grep '^torch==' "$root/requirements/lock.txt")" || die 3 "$hint"
    run "all packages" "${pip[@]}" "${locks[@]}" || die 3 "$hint"
    if [ "$kind" = wheels ]; then
        run "ROS wheels" env -u PYTHONPATH "$venv/bin/python" "$root/requirements/relocate_ros_wheels.py" || die 3 "the ROS wheels could not be prepared"
    fi
    printf '%s\n' "$wanted" >"$packages_stamp_file"
    rm -f "$installing"
}

# --- 4: ros2_ws --------------------------------------------------------------------------------------------------

build_workspace() {
    local made_for
    made_for="$root $ros $(python_version "$venv/bin/python")"
    if [ -e "$building" ] || [ "$(cat "$ws/install/.rsd-made-for" 2>/dev/null)" != "$made_for" ]; then
        rm -rf "$ws"/{build,install,log}
    fi
    : >"$building"
    run "rsd_msgs and rsd_policy" bash "$root/requirements/build_workspace.sh" "$root" ||
        die 3 "ros2_ws was not built; the compiler's message is above and in $log"
    printf '%s\n' "$made_for" >"$ws/install/.rsd-made-for"
    rm -f "$building"
}

# Becomes the command that the set-up was for.
go_on() {
    [ $# -gt 0 ] || exit 0
    shift
    trap - INT TERM HUP
    exec 1>&8 8>&- 9>&-
    RSD_SETUP_DONE=1 exec "$root/rsd" "$@"
}

main() {
    while [ $# -gt 0 ]; do
        case $1 in
            --clean) clean=yes ;;
            --) break ;;
            *) die 2 "setup: unknown argument '$1'; expected none or --clean" ;;
        esac
        shift
    done
    # what is said here must not end up in the output of the command that follows
    exec 8>&1 1>&2
    if [ ! -w "$root" ]; then
        if [ -L "$venv/bin/python" ] && [ ! -x "$venv/bin/python" ]; then
            die 3 "user $(id -u) cannot run the Python that $root was set up with, $(readlink -m "$venv/bin/python");" \
                "its owner must set it up with one that everybody can run:  RSD_PYTHON=/usr/bin/python3 ./rsd setup --clean"
        fi
        die 3 "$root cannot be written to by user $(id -u); set it up as its owner, or clone it to a place of your own"
    fi
    # LC_ALL=C: bytes, whatever the user's locale makes of them. CMake drops what is not ASCII from the names that ROS's
    # generators write; make, CMake and shells give a meaning to the rest.
    local LC_ALL=C
    [[ ! $root =~ [^A-Za-z0-9\ /._+,@=~-] ]] || die 3 "the path '$root' cannot be built in: expected letters without accents, digits," \
        "spaces and . _ + , @ = ~ - in it (ROS's message generators do not work elsewhere); move or clone rsd_policy to such a path"
    unset LC_ALL
    [ "$(uname -m)" = x86_64 ] || die 3 "expected an x86-64 machine, got $(uname -m): there are no ROS and simulation wheels for it"
    trap interrupted INT TERM HUP
    # the lock dies with the processes that hold it, whatever kills them
    exec 9<"$root/rsd"
    if ! flock --nonblock 9; then
        say "rsd: another set-up of this directory is running; waiting for it"
        flock 9
    fi
    kind=$(rsd_ros_kind)
    ros=wheels
    if [ "$kind" = system ]; then
        rsd_source_system_ros
        ros=$(ros_prefix)/setup.bash
        [ "$ros" != /setup.bash ] || die 3 "ROS_DISTRO=$ROS_DISTRO, but no rclpy in AMENT_PREFIX_PATH; source ROS's setup.bash first, or unset ROS_DISTRO"
    fi
    stamp=$(rsd_stamp)
    [ -z "${clean:-}" ] || rm -f "$RSD_STAMP_FILE"
    if [ "$stamp" = "$(cat "$RSD_STAMP_FILE" 2>/dev/null)" ]; then
        say "rsd: set up"
        go_on "$@"
    fi

    say "rsd: setting up $root (log: $log)"
    : >"$log"
    say "[1/4] system packages"
    python=$(choose_python)
    system_packages
    if [ -n "${clean:-}" ]; then
        : >"$building"
        discard "$venv"
    fi
    say "[2/4] Python environment ($([ "$kind" = wheels ] && echo 'ROS 2 Jazzy from wheels' || echo "ROS 2 $ROS_DISTRO of this machine"))"
    create_venv
    say "[3/4] Python packages"
    python_packages
    say "[4/4] ROS packages"
    stamp=$(rsd_stamp)
    build_workspace
    printf '%s\n' "$stamp" >"$RSD_STAMP_FILE"
    say "rsd: set up in $SECONDS s"
    go_on "$@"
}

main "$@"
