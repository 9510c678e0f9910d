"""`doctor`: what this machine and this installation can do."""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from runtime_edge.cli import machine, options
from runtime_edge.installation import DISTRIBUTION, install_command
from runtime_edge.probe import cpu_field

# The instruction sets that ONNX Runtime's kernels choose by.
_FEATURES = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


@click.command()
@options.as_json
def doctor(as_json: bool) -> None:
    """Show what this machine and this installation can do.

    Python, packages, which extras are complete and how to get those that are not, CPU, memory, GPUs, and what
    TensorRT has and lacks here: driver, compute capability, free memory, versions; and what would be better.
    """
    from runtime_edge.cli.console import print_json, print_pairs

    facts = examine()
    if as_json:
        print_json(facts)
        return
    rows = [("python", facts["python"]), ("system", facts["system"]), ("cpu", facts["cpu"]["model"])]
    rows += [("cores", f"{facts['cpu']['cores']} usable, {facts['cpu']['threads']} threads in all")]
    rows += [("features", " ".join(facts["cpu"]["features"]) or "none that Lepton looks for")]
    rows += [("kernels", facts["kernels"])]
    rows += [("memory", f"{facts['memory_gb']:.1f} GB" if facts["memory_gb"] is not None else "unknown")]
    rows += [("gpu", ", ".join(gpu.values())) for gpu in facts["gpus"]] or [("gpu", "none found")]
    rows += [("", ""), *_tensorrt_rows(facts["tensorrt"]), ("", "")]
    rows += [(name, version or "missing") for name, version in facts["base"].items()]
    for extra, state in facts["extras"].items():
        missing = ", ".join(name for name, version in state["packages"].items() if version is None)
        rows += [(f"extra {extra}", f"lacks {missing}: {state['install']}" if missing else "complete")]
    rows += [("better", line) for line in facts["better"]]
    print_pairs(rows)


def examine() -> dict[str, Any]:
    """Returns everything that `doctor` shows, as plain data."""
    from runtime_edge.cli.better import Machine, better
    from runtime_edge.probe import usable_cores

    base, extras = _packages()
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cpu": {
            "model": machine.processor(),
            "cores": usable_cores(),
            "threads": os.cpu_count(),
            "features": _features(),
        },
        "kernels": _kernels(),
        "memory_gb": _memory_gb(),
        "gpus": _gpus(),
        "tensorrt": examine_tensorrt(),
        "base": base,
        "extras": extras,
        "better": better(Machine.here()),
    }


def examine_tensorrt() -> dict[str, Any]:
    """Returns what engines of TensorRT run with here; what is missing is `lacks`, and how to get it `install`."""
    from runtime_edge.cuda import Cuda
    from runtime_edge.tensorrt import device, flavours

    def free() -> dict[str, Any]:
        return {"bytes": Cuda().free_memory()}

    def version(flavour: flavours.Flavour) -> dict[str, Any]:
        return {"version": flavours.module_version(flavours.import_module(flavour))}

    return {
        "driver": _state(lambda: asdict(device.gpu())),
        "free_memory": _state(free),
        "flavours": {name: _state(partial(version, flavour)) for name, flavour in flavours.FLAVOURS.items()},
        "onnxruntime_providers": _providers(),
    }


def _state(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    from runtime_edge.errors import LeptonError

    try:
        return ask()
    except LeptonError as error:
        return {"lacks": error.message, "install": error.hint}


def _providers() -> list[str]:
    from runtime_edge import ort
    from runtime_edge.errors import MissingDependencyError

    try:
        return list(ort.load().get_available_providers())
    except MissingDependencyError:
        return []


def _tensorrt_rows(tensorrt: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from runtime_edge.tensorrt.flavours import FLAVOURS

    def shown(state: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> str:
        if "lacks" not in state:
            return text(state)
        return f"missing: {state['lacks']}" + (f"; {state['install']}" if state["install"] else "")

    driver = tensorrt["driver"]
    yield "driver", shown(driver, lambda state: f"CUDA {state['driver']}")
    if "lacks" not in driver:
        yield "compute capability", f"{driver['compute_capability']} ({driver['name']})"
        total = driver["memory"]
        yield (
            "gpu memory",
            shown(tensorrt["free_memory"], lambda state: f"{state['bytes'] / 1e9:.1f} of {total / 1e9:.1f} GB free"),
        )
    else:
        yield "gpu memory", shown(tensorrt["free_memory"], lambda state: f"{state['bytes'] / 1e9:.1f} GB free")
    for name, state in tensorrt["flavours"].items():
        yield FLAVOURS[name].title, shown(state, lambda state: str(state["version"]))
    yield "ONNX Runtime on", ", ".join(tensorrt["onnxruntime_providers"]) or f"nothing: {install_command('cpu')}"


def _packages() -> tuple[dict[str, str | None], dict[str, Any]]:
    """Versions of the base requirements, and for each extra those of its own and how to install it."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {DISTRIBUTION: None}, {}
    base: dict[str, str | None] = {DISTRIBUTION: machine.version(DISTRIBUTION)}
    extras: dict[str, Any] = {}
    for requirement in requirements:
        match = _NAME.match(requirement)
        marker = _EXTRA.search(requirement)
        if match is None or (name := match.group()) == DISTRIBUTION:
            continue  # an extra that is made of others
        if marker is None:
            base[name] = machine.version(name)
            continue
        extra = extras.setdefault(marker.group(1), {"install": "", "packages": {}})
        extra["packages"][name] = machine.version(name)
        extra["install"] = install_command(marker.group(1))
    # Needed on older Pythons only.
    if sys.version_info >= (3, 11):
        base.pop("tomli", None)
    return base, extras


def _features() -> list[str]:
    present = set((cpu_field("flags") or cpu_field("Features")).split())
    return [feature for feature in _FEATURES if feature in present]


def _kernels() -> str:
    """Whose kernels run on the CPU where there are some of ours, in which formats."""
    from runtime_edge import kernels

    missing = kernels.lacking()
    if missing is not None:
        return f"ONNX Runtime's; Lepton's: {missing}"
    integers = "; beside int8 activations in bfloat16, and products of int8" if kernels.tiles() else ""
    return f"Lepton's: attention in float32{integers}"


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        return None


def _gpus() -> list[dict[str, str]]:
    return [*_nvidia_smi(), *_jetson()]


def _nvidia_smi() -> Iterator[dict[str, str]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return
    fields = ("name", "compute_cap", "memory.total", "driver_version")
    try:
        output = subprocess.run(
            [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return
    for row in csv.reader(output.splitlines(), skipinitialspace=True):
        yield dict(zip(fields, row, strict=False))


def _jetson() -> Iterator[dict[str, str]]:
    try:
        model = Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n")
        release = Path("/etc/nv_tegra_release").read_text(errors="replace").splitlines()[0]
    except (OSError, IndexError):
        return
    yield {"name": model, "jetson_linux": release.strip("# ")}
