"""What every source yields: a config, a tokenizer, and weights that are read only when somebody asks.

A `Source` holds no weight in memory. `source.weights[name]` is a handle; `.read()` materialises one tensor, and the
source keeps no reference to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from leptonc.report.pruning import Pruning
from leptonc.report.quality import Fidelity

if TYPE_CHECKING:
    from runtime_edge.manifest import PassRecord

Array = NDArray[Any]
EMBEDDING = "sentence_embedding"  # what sentence-transformers calls the result of its modules
TOKENS = "token_embeddings"  # and what the encoder gives to the first of them


class LazyTensor(Protocol):
    """A named weight that is not in memory yet.

    Attributes:
        shape: Dimensions of the array that `read` returns.
        dtype: The type as stored, spelled as the container spells it ("F32", "BF16", "Q4_1", ...).
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    def read(self) -> Array:
        """Returns the tensor: float32 for every stored float or quantized type; integers and booleans stay as stored.

        The array may be a read-only view of the mapped file. Nothing is cached: two calls do the work twice.
        """
        ...


@dataclass(frozen=True)
class SentenceModule:
    """One step that sentence-transformers runs after the encoder.

    Attributes:
        kind: Its class there: "Pooling", "Dense", "Normalize" or "LayerNorm".
        options: What its config.json has, under the names that the current version gives them, defaults filled in.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SentenceModules:
    """What sentence-transformers does before and after the encoder.

    Attributes:
        chain: The steps after the encoder, in order. The weights of step i are the source's, under `sentence.step{i}.`.
        max_seq_length: Longest input in tokens, where the model's own files limit it.
        prompts: Texts that are put before others, by name.
        default_prompt: Name of the prompt that applies where none is asked for.
        truncate_dim: How many numbers of an embedding are used, where the model says so.
        similarity: How embeddings are meant to be compared: "cosine", "dot", "euclidean" or "manhattan".
        pairs: Whether it is a `CrossEncoder`, which scores pairs of texts and has no step after the encoder.
        score_function: What a `CrossEncoder` makes its scores with: "sigmoid", "none", or "" for its default.
    """

    chain: tuple[SentenceModule, ...] = ()
    max_seq_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    truncate_dim: int | None = None
    similarity: str = "cosine"
    pairs: bool = False
    score_function: str = ""

    @classmethod
    def pooled(
        cls, pooling: str = "mean", normalize: bool = False, max_seq_length: int | None = None
    ) -> SentenceModules:
        """Returns the most usual chain: one kind of pooling, normalized or not."""
        steps = [SentenceModule("Pooling", {"pooling_mode": [pooling], "include_prompt": True})]
        if normalize:
            steps.append(SentenceModule("Normalize", {"module_input_name": EMBEDDING, "module_output_name": EMBEDDING}))
        return cls(tuple(steps), max_seq_length)


@dataclass(frozen=True)
class Emitted:
    """A graph that was captured before, in the place of a model that has to be; see `leptonc.sources.emitted.About`.

    Attributes:
        label: What error messages call the graph.
        graph: The graph as ONNX; its weights are the source's, under the names of its initializers.
        task, parameters, max_seq_len, origin, passes, pruning, fidelity: As `About` has them.
    """

    label: str
    graph: bytes
    task: str
    parameters: int
    max_seq_len: int
    origin: dict[str, str]
    passes: tuple[PassRecord, ...] = ()
    pruning: tuple[Pruning, ...] = ()
    fidelity: Fidelity | None = None


@dataclass
class Source:
    """A trained model as the compiler sees it, whatever file it came from.

    Attributes:
        name: Default stem of the artifact's name, such as "SmolLM2-135M-Instruct".
        origin: Where it came from, for the manifest: `kind`, `id`, and `revision`, `sha256`, `licence` where known.
            Never an absolute path.
        config: As a Hugging Face `config.json`; has `model_type` and `architectures`.
        weights: Lazy tensors under their Hugging Face parameter names; of an emitted graph, under its initializers'.
        tokenizer_json: The tokenizer in the `tokenizers` library's format, without truncation and padding.
        tokenizer_config: Texts of special tokens (`bos_token`, `eos_token`, `pad_token`, ...) and the like.
        chat_template: Jinja source, where the model has one.
        chat_templates: Further ones by name, such as `tool_use`.
        generation_config: As a Hugging Face `generation_config.json`; None where there is none: see `generation.py`.
        modules: What a sentence-transformers model does before and after the encoder.
        emitted: The graph of a model that was captured before; None where it has to be.
        library_path: A directory that sentence-transformers itself can load, for the check of an embedding model.
        path: Where its files are, for the check, which reads them by itself: a directory, or the parts of a GGUF file;
            empty for a model that is made up.
        warnings: What the user must know of how the files were read.
        complete: Whether every tensor has a use where the files come from, so that one without a use here is refused.
    """

    name: str
    origin: dict[str, str]
    config: dict[str, Any]
    weights: Mapping[str, LazyTensor]
    tokenizer_json: bytes
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    generation_config: dict[str, Any] | None = None
    modules: SentenceModules | None = None
    emitted: Emitted | None = None
    closers: tuple[Callable[[], None], ...] = ()
    library_path: Path | None = None
    path: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()
    complete: bool = False

    def close(self) -> None:
        """Unmaps the files. Arrays that were read stay valid: a view keeps its mapping alive until it is dropped."""
        for closer in self.closers:
            closer()
        self.closers = ()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def text_limit(source: Source) -> int | None:
    """Returns at how many tokens an encoder's texts are cut, where the model's files say so.

    The limit of a sentence-transformers model comes first, then that of the tokenizer.
    """
    if source.modules is not None and source.modules.max_seq_length is not None:
        return source.modules.max_seq_length
    length: int | None = source.tokenizer_config.get("model_max_length")
    return length


@dataclass(frozen=True)
class ComputedTensor:
    """A `LazyTensor` made by a function: a transform of another tensor, or seeded random numbers."""

    shape: tuple[int, ...]
    dtype: str
    compute: Callable[[], Array]

    def read(self) -> Array:
        """Runs the function; raises ValueError if the result has another shape than was promised."""
        array = self.compute()
        if array.shape != self.shape:
            raise ValueError(f"expected a tensor of shape {self.shape}, computed one of {array.shape}")
        return array
