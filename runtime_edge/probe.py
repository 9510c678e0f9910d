"""What of this machine the process may use."""

from __future__ import annotations

import os
from pathlib import Path

from runtime_edge.errors import RequestError

THREADS_VARIABLE = "LEPTON_THREADS"
OPENMP_VARIABLE = "OMP_NUM_THREADS"  # threads of the libraries that a build computes with
_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_UNKNOWN_MEMORY = 2**30  # bytes, where the system does not say


def default_threads() -> int:
    """Threads that a model runs on where the caller names none: `LEPTON_THREADS`, or `usable_cores()`.

    Raises:
        RequestError: `LEPTON_THREADS` is set and is not a positive number.
    """
    text = os.environ.get(THREADS_VARIABLE, "")
    if not text:
        return usable_cores()
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
        raise RequestError(f"{THREADS_VARIABLE}: expected a number from 1 to 1024, found {text!r}")
    return int(text)


def usable_memory() -> int:
    """Bytes of memory that this process may use: the machine's, within its control group's limit."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        machine = _UNKNOWN_MEMORY
    limits = (_read(_CGROUPS / name) for name in ("memory.max", "memory/memory.limit_in_bytes"))
    return min([machine, *(int(text) for text in limits if text.isdigit())])


def usable_cores() -> int:
    """Physical cores that this process may use: within its affinity, and within its control group's quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = affinity(0) if affinity is not None else set(range(os.cpu_count() or 1))
    # Two hardware threads of one core share its vector units: the second slows the first more than it helps.
    cores = {_core(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota()))


def _core(cpu: int) -> str:
    """A name of the physical core of a logical CPU; the CPU's own where the kernel does not say."""
    return _read(_CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def cpu_field(name: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        with Path("/proc/cpuinfo").open(errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        pass
    return ""


def _quota() -> int:
    """CPUs that the control group grants, rounded up; very many where it sets no limit."""
    v2 = _read(_CGROUPS / "cpu.max").split()
    v1 = [_read(_CGROUPS / "cpu/cpu.cfs_quota_us"), _read(_CGROUPS / "cpu/cpu.cfs_period_us")]
    for fields in (v2, v1):
        if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit() and int(fields[1]) > 0:
            return max(1, -(-int(fields[0]) // int(fields[1])))
    return 2**31


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
