"""A recorded stand-in of standard TensorRT's API, used to test the order of calls and nothing else.

It has what the builder may use of TensorRT 10.3's documented Python API, and no more: anything else is an
AttributeError. `test_api` holds its names against the real classes of TensorRT-RTX.
"""

from __future__ import annotations

import enum
import types
from typing import Any


class Recorded(types.ModuleType):
    """The module: `calls` lists what was called, in its order."""

    def __init__(self, version: str = "10.16.1.11", *, plan: bytes | None = b"a plan") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.plan = plan
        record = self.record

        class ILogger:
            INTERNAL_ERROR, ERROR, WARNING = range(3)

        class IProgressMonitor:
            pass

        class BuilderFlag(enum.Enum):
            REFIT = 1
            STRIP_PLAN = 2
            WEIGHT_STREAMING = 3
            SPARSE_WEIGHTS = 4

        class MemoryPoolType(enum.Enum):
            WORKSPACE = 0

        class NetworkDefinitionCreationFlag(enum.IntEnum):
            STRONGLY_TYPED = 1

        class ITensor:
            name = "x"
            shape = (-1, 128)
            is_shape_tensor = False

        class LayerType(enum.Enum):
            SHUFFLE = 0
            ATTENTION_OUTPUT = 1

        class IAttention:
            def __setattr__(self, name: str, value: Any) -> None:
                record(f"IAttention.{name}", value)

        class ILayer:
            type = LayerType.SHUFFLE

        class IAttentionOutputLayer:
            type = LayerType.ATTENTION_OUTPUT
            attention = IAttention()

        class INetworkDefinition:
            num_inputs = 1
            num_layers = 3

            def get_layer(self, index: int) -> Any:
                return IAttentionOutputLayer() if index == 1 else ILayer()

            def get_input(self, index: int) -> ITensor:
                assert index == 0
                return ITensor()

        class IOptimizationProfile:
            def set_shape(self, *arguments: Any) -> None:
                record("IOptimizationProfile.set_shape", *arguments)

            def set_shape_input(self, *arguments: Any) -> None:
                raise AssertionError("no input of this network is a shape tensor")

        class ITimingCache:
            def __init__(self, data: bytes) -> None:
                self.data = data

            def serialize(self) -> bytearray:
                return bytearray(self.data + b"+times")

        class IBuilderConfig:
            cache: ITimingCache | None = None

            def __setattr__(self, name: str, value: Any) -> None:
                if name not in ("progress_monitor", "cache"):
                    raise AttributeError(name)
                if name == "progress_monitor":
                    record("IBuilderConfig.progress_monitor", isinstance(value, IProgressMonitor))
                object.__setattr__(self, name, value)

            def set_memory_pool_limit(self, *arguments: Any) -> None:
                record("IBuilderConfig.set_memory_pool_limit", *arguments)

            def set_flag(self, *arguments: Any) -> None:
                record("IBuilderConfig.set_flag", *arguments)

            def add_optimization_profile(self, given: IOptimizationProfile) -> int:
                record("IBuilderConfig.add_optimization_profile")
                return 0

            def create_timing_cache(self, data: bytes) -> ITimingCache:
                record("IBuilderConfig.create_timing_cache", data)
                return ITimingCache(data)

            def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
                record("IBuilderConfig.set_timing_cache", cache.data, ignore_mismatch)
                if cache.data == b"of another device":
                    return False
                self.cache = cache
                return True

            def get_timing_cache(self) -> ITimingCache | None:
                return self.cache

        class Builder:
            def __init__(self, logger: ILogger) -> None:
                record("Builder", isinstance(logger, ILogger))

            def create_network(self, flags: int) -> INetworkDefinition:
                record("Builder.create_network", flags)
                return INetworkDefinition()

            def create_builder_config(self) -> IBuilderConfig:
                record("Builder.create_builder_config")
                return IBuilderConfig()

            def create_optimization_profile(self) -> IOptimizationProfile:
                record("Builder.create_optimization_profile")
                return IOptimizationProfile()

            def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
                record("Builder.build_serialized_network")
                return module.plan

        class OnnxParser:
            num_errors = 0

            def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
                record("OnnxParser", isinstance(network, INetworkDefinition), isinstance(logger, ILogger))

            def parse_from_file(self, path: str) -> bool:
                record("OnnxParser.parse_from_file", path)
                return True

            def get_error(self, index: int) -> Any:
                raise AssertionError("there is none")

            def supports_operator(self, name: str) -> bool:
                raise AssertionError("nothing failed to parse")

        module = self
        for kind in (
            ILogger, IProgressMonitor, BuilderFlag, MemoryPoolType, NetworkDefinitionCreationFlag, ITensor, LayerType,
            IAttentionOutputLayer,
            INetworkDefinition, IOptimizationProfile, ITimingCache, IBuilderConfig, Builder, OnnxParser,
        ):  # fmt: skip
            setattr(self, kind.__name__, kind)
        self.kinds = [
            kind.__name__
            for kind in (ITensor, INetworkDefinition, IOptimizationProfile, ITimingCache, IAttentionOutputLayer)
        ]
        self.kinds += [kind.__name__ for kind in (IBuilderConfig, Builder, OnnxParser, BuilderFlag, MemoryPoolType)]

    def record(self, name: str, *arguments: Any) -> None:
        """Notes a call."""
        self.calls.append((name, arguments))
