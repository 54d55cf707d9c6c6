"""Chooses the OpenGL back end and device that robosuite renders with, before robosuite or PyOpenGL is imported."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rsd_policy.errors import SetupError

INSTALL_GL = (
    "install one: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (EGL) or apt-get install libosmesa6 (OSMesa)"
)

_NO_GL = ("disable", "disabled", "off", "false", "0")


def choose_renderer() -> str:
    """Select the OpenGL back end for this process and say which: "egl", "osmesa", the user's choice, or "disable".

    MUJOCO_GL, when set, is respected, and so is MUJOCO_EGL_DEVICE_ID. With EGL the device is always named: robosuite
    would otherwise read CUDA_VISIBLE_DEVICES as a list of EGL indices, which it need not be (empty, -1, a UUID, or a
    GPU that has no EGL device of that number).

    Raises:
        SetupError: the user chose EGL, or a device of it, and it does not initialise.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in _NO_GL:
        return "disable"
    if chosen not in ("", "egl"):
        return chosen
    device = _working_egl_device()
    if device is not None:
        os.environ["MUJOCO_GL"] = "egl"
        os.environ["MUJOCO_EGL_DEVICE_ID"] = str(device)
        return "egl"
    named = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if named is not None:
        raise SetupError(
            f"MUJOCO_EGL_DEVICE_ID: expected the index of an EGL device that works, got '{named}'; unset it (one that "
            "works is chosen then)"
        )
    if chosen == "egl":
        raise SetupError(f"MUJOCO_GL=egl: expected an EGL device, found none that works; unset it, or {INSTALL_GL}")
    try:
        ctypes.CDLL("libOSMesa.so.8")
    except OSError:
        os.environ["MUJOCO_GL"] = "disable"
        return "disable"
    os.environ["MUJOCO_GL"] = "osmesa"
    os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")
    return "osmesa"


@contextmanager
def hidden_cuda_devices() -> Iterator[None]:
    """For the import of robosuite, which refuses an EGL device whose index is not part of CUDA_VISIBLE_DEVICES."""
    value = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        yield
    finally:
        if value is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = value


def egl_order(count: int, environment: Mapping[str, str]) -> list[int]:
    """Indices of EGL devices 0..count-1 in the order in which they are tried.

    The one that MUJOCO_EGL_DEVICE_ID names, alone; else first those that CUDA_VISIBLE_DEVICES names, so that processes
    which were given a GPU each also render on it where EGL counts them alike.
    """
    named = environment.get("MUJOCO_EGL_DEVICE_ID")
    if named is not None:
        return [int(named)] if named.isdecimal() and int(named) < count else []
    entries = [entry.strip() for entry in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    visible = [int(entry) for entry in entries if entry.isdecimal() and int(entry) < count]
    return list(dict.fromkeys([*visible, *range(count)]))


def _working_egl_device() -> int | None:
    """Index of the first EGL device that initialises, None when there is none.

    Asked through ctypes, because PyOpenGL binds itself to one platform per process: after a failed try with EGL it
    could not fall back to OSMesa.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return None
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    query = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    get_display = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query or not get_display:
        return None
    int32_p = ctypes.POINTER(ctypes.c_int32)
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p), int32_p)(query)
    platform_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, int32_p)(get_display)
    egl.eglInitialize.argtypes = [ctypes.c_void_p, int32_p, int32_p]
    egl.eglInitialize.restype = ctypes.c_uint
    devices = (ctypes.c_void_p * 64)()
    found = ctypes.c_int32(0)
    if not query_devices(64, devices, ctypes.byref(found)):
        return None
    egl_platform_device_ext = 0x313F
    for index in egl_order(found.value, os.environ):
        display = platform_display(egl_platform_device_ext, devices[index], None)
        if display and egl.eglInitialize(display, None, None):
            return index
    return None
