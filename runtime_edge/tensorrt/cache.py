"""Where a device keeps what it made of artifacts: plans, measured times, kernels compiled for its GPU.

A plan is code that the GPU and TensorRT will trust, so nobody else may write here.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from runtime_edge.errors import ArtifactError
from runtime_edge.tensorrt.device import Device

VARIABLE = "LEPTON_CACHE"


def cache_root() -> Path:
    """The cache's directory: LEPTON_CACHE, else `lepton` in the system's place for caches; it need not exist."""
    folder = os.environ.get(VARIABLE)
    if folder:
        return Path(folder).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base) / "lepton" / "cache" if base else Path.home() / ".cache" / "lepton"
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a path that is not absolute is ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "lepton"


def private_directory(name: str, root: Path | None = None) -> Path:
    """Makes a directory of the cache for this user alone.

    Args:
        name: `plans`, `times` or `jit`.
        root: The cache. Default: `cache_root()`.

    Raises:
        ArtifactError: It belongs to someone else, or others may write to it.
    """
    path = (cache_root() if root is None else root) / name
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(path)
    return path


def check_private(path: Path) -> None:
    """Refuses a directory whose files others could exchange (on POSIX)."""
    if sys.platform == "win32":
        return
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ArtifactError(
            f"{path}: expected a directory that only this user can write to, found mode "
            f"{stat.S_IMODE(status.st_mode):o} of user {status.st_uid}",
            hint=f"`chmod 700 {path}`, or name another directory with {VARIABLE}",
        )


def jit_cache_path(plan_sha256: str, device: Device, root: Path | None = None) -> Path:
    """Where TensorRT-RTX's runtime keeps the kernels that it compiled for a plan on this GPU; the file may be missing.

    Args:
        plan_sha256: The plan's hash in hexadecimal.
        device: This machine's GPU and version.
        root: The cache. Default: `cache_root()`.
    """
    return private_directory("jit", root) / f"{plan_sha256}-{device.version}-{device.capability}.cache"


def times_path(device: Device, root: Path | None = None) -> Path:
    """Where standard TensorRT keeps the times that it measured on this GPU."""
    return private_directory("times", root) / f"{device.version}-{device.capability}.cache"
