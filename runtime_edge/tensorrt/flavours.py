"""The two flavours of TensorRT as data: where they differ from each other and from version to version, in one table.

Sources: NVIDIA TensorRT-RTX 1.4 and 1.5 Support Matrix (number formats by compute capability) and CPU-Only AOT Engines;
NVIDIA TensorRT, Working with Quantized Types (int4 in blocks of 64 or 128) and Sparsity (fp16 and int8); onnx-tensorrt,
Supported ONNX Operators of 10.0, 10.1, 10.15 and 11.2, and the parser's release notes of 10.14 (Attention) and 11.0
(Swish). What stands here for TensorRT-RTX was tried with 1.7.1, and tests try it again.
"""

from __future__ import annotations

import importlib
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from runtime_edge.errors import EngineError, MissingDependencyError
from runtime_edge.installation import install_command

_COMPARE = {
    "==": operator.eq,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_BOUND = re.compile(r"(==|<=|>=|<|>)(\d+(?:\.\d+)*)")


@dataclass(frozen=True)
class Flavour:
    """One flavour of TensorRT.

    Attributes:
        name: As engine specs and variants call it.
        title: As people call it.
        module: The Python module.
        extra: The extra that has the module; None where none does.
        elsewhere: What to do where the module is missing, and no extra has it.
        versions: The versions that the builder is written for.
        first_operators: ONNX operators that only some versions parse, each with the first that does.
        least_capability: Number formats that weights can have, each with the least compute capability that takes it.
        int4_blocks: Weights of an int4 block that share a scale, along the axis that is summed over.
        sparse_formats: Number formats that weights of which two of four are zero can have.
        heeds_sparsity: Whether the flag for such weights changes what is built.
        named_capabilities: The capabilities that a build can name; None where it builds for the machine's own GPU.
        needs_gpu: Whether building needs a GPU.
        refit_needs_gpu: Whether building plans that can be refitted or have no weights needs a GPU.
        has_timing_cache: Whether tactics are timed, and the times can be kept for the next build.
        compiles_on_device: Whether kernels are compiled where a plan runs, and can be kept for the next load.
        flags: Builder flags of every engine without weight streaming. TensorRT-RTX promises that a step can be captured
            as a CUDA graph only where all memory is the caller's, and streaming needs memory of its own.
        own_api: What the builder uses that the other flavour does not have, as `Class.attribute` or a name.
    """

    name: str
    title: str
    module: str
    extra: str | None
    elsewhere: str
    versions: str
    first_operators: Mapping[str, str]
    least_capability: Mapping[str, str]
    int4_blocks: tuple[int, ...]
    named_capabilities: tuple[str, ...] | None
    needs_gpu: bool
    refit_needs_gpu: bool
    has_timing_cache: bool
    compiles_on_device: bool
    flags: tuple[str, ...] = ()
    sparse_formats: tuple[str, ...] = ("fp16", "int8")
    heeds_sparsity: bool = True
    own_api: frozenset[str] = field(default_factory=frozenset)

    @property
    def install(self) -> str:
        """What to do where the module is missing."""
        return self.elsewhere if self.extra is None else install_command(self.extra)


FLAVOURS: Mapping[str, Flavour] = {
    flavour.name: flavour
    for flavour in (
        Flavour(
            name="tensorrt",
            title="TensorRT",
            module="tensorrt",
            extra=None,
            elsewhere="on a Jetson it comes with JetPack (`sudo apt install nvidia-jetpack`); a virtual environment "
            "sees it when it was made with `--system-site-packages`",
            versions=">=10.3;<12.0",
            first_operators={
                "Attention": "10.14",
                "RMSNormalization": "10.15",
                "RotaryEmbedding": "10.15",
                "TensorScatter": "10.15",
                "Swish": "11.0",
            },
            least_capability={"fp32": "7.5", "fp16": "7.5", "int8": "7.5", "bf16": "8.0", "int4": "8.0", "fp8": "8.9"},
            int4_blocks=(64, 128),
            named_capabilities=None,
            needs_gpu=True,
            refit_needs_gpu=True,
            has_timing_cache=True,
            compiles_on_device=False,
            own_api=frozenset(
                {
                    "IBuilderConfig.create_timing_cache",
                    "IBuilderConfig.set_timing_cache",
                    "IBuilderConfig.get_timing_cache",
                    "ITimingCache.serialize",
                }
            ),
        ),
        Flavour(
            name="tensorrt-rtx",
            title="TensorRT-RTX",
            module="tensorrt_rtx",
            extra="rtx",
            elsewhere="",
            versions=">=1.4;<2.0",
            # Swish was tried with 1.7; which version was the first is not documented.
            first_operators={
                "Attention": "1.4",
                "RMSNormalization": "1.4",
                "RotaryEmbedding": "1.4",
                "TensorScatter": "1.4",
                "Swish": "1.7",
            },
            # On 7.5 even an fp32 matrix product is refused (1.7.1).
            least_capability={"fp16": "7.5", "int8": "7.5", "fp32": "8.0", "bf16": "8.0", "int4": "8.0", "fp8": "8.9"},
            int4_blocks=(16, 32, 64, 128),
            named_capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
            needs_gpu=False,
            refit_needs_gpu=True,
            compiles_on_device=True,
            has_timing_cache=False,  # its functions are there, deprecated and without effect since 1.2
            flags=("REQUIRE_USER_ALLOCATION",),
            heeds_sparsity=False,  # it takes the flag; a plan is the same bytes with and without (1.7.1)
            own_api=frozenset(
                {
                    "IBuilderConfig.num_compute_capabilities",
                    "IBuilderConfig.set_compute_capability",
                    "BuilderFlag.REQUIRE_USER_ALLOCATION",
                    "ComputeCapability",
                }
            ),
        ),
    )
}


def flavour(name: str) -> Flavour:
    """Returns the flavour of an engine spec (raises `EngineError`: there is none of that name)."""
    if name not in FLAVOURS:
        raise EngineError(f"flavour: expected one of {', '.join(FLAVOURS)}, found {name!r}")
    return FLAVOURS[name]


def import_module(wanted: Flavour) -> Any:
    """Imports a flavour's module, which no type checker knows.

    Raises:
        MissingDependencyError: It is not installed, or the libraries that it wraps cannot be loaded.
        EngineError: Its version is not one that the builder is written for.
    """
    absent = f"{wanted.title} needs the module `{wanted.module}`, which is not installed"
    try:
        module: ModuleType = importlib.import_module(wanted.module)
    except ModuleNotFoundError as error:
        if error.name != wanted.module:  # one that it imports: it is installed, but not whole
            raise _broken(wanted, error) from error
        raise MissingDependencyError(absent, hint=wanted.install) from error
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        raise _broken(wanted, error) from error
    # Any folder of the name imports as a namespace: stubs of types, or one in the working directory.
    if getattr(module, "__file__", None) is None and hasattr(module, "__path__"):
        raise MissingDependencyError(absent, hint=wanted.install)
    version = module_version(module)
    if not in_range(version, wanted.versions):
        raise EngineError(
            f"{wanted.title}: expected a version in {wanted.versions}, found {version}", hint=wanted.install
        )
    return module


def _broken(wanted: Flavour, error: Exception) -> MissingDependencyError:
    return MissingDependencyError(
        f"{wanted.title}: expected the module `{wanted.module}` to load, found: {error}", hint=wanted.install
    )


def module_version(module: Any) -> str:
    """The exact version of a flavour's module: plans are loaded by the version that built them, and no other."""
    return str(module.__version__)


def parse_version(text: str) -> tuple[int, ...]:
    """Returns the numbers of a version, `10.3.0.30` as (10, 3, 0, 30); what follows them (`+cuda13`) is left out.

    Raises:
        EngineError: It does not start with a number.
    """
    match = re.match(r"\d+(\.\d+)*", text)
    if match is None:
        raise EngineError(f"version: expected numbers with dots, such as 10.3.0, found {text!r}")
    return tuple(int(number) for number in match.group().split("."))


def in_range(version: str, versions: str) -> bool:
    """Whether a version is in a range such as `>=10.16;<11.0`; `10.3` and `10.3.0.0` are equal.

    Raises:
        EngineError: One of the two cannot be read.
    """
    numbers = _padded(parse_version(version))
    for part in versions.split(";"):
        bound = _BOUND.fullmatch(part.strip())
        if bound is None:
            raise EngineError(f"versions: expected a range such as >=10.3;<11.0, found {versions!r}")
        if not _COMPARE[bound[1]](numbers, _padded(parse_version(bound[2]))):
            return False
    return True


def _padded(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return (numbers + (0,) * 6)[: max(6, len(numbers))]


def first_version(versions: str) -> str:
    """Returns the lowest version of a range: what a graph for all of it may use.

    Raises:
        EngineError: The range has no lower bound, or cannot be read.
    """
    for part in versions.split(";"):
        bound = _BOUND.fullmatch(part.strip())
        if bound is not None and bound[1] in (">=", "=="):
            return bound[2]
    raise EngineError(f"versions: expected a range with a lower bound, such as >=10.3;<11.0, found {versions!r}")


def parses(wanted: Flavour, op_type: str, version: str) -> bool:
    """Whether a version parses an operator of `first_operators`; others are in every version that is supported."""
    first = wanted.first_operators.get(op_type)
    return first is None or in_range(version, f">={first}")
