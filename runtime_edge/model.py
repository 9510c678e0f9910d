"""A loaded model: what an application holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from runtime_edge import request as check
from runtime_edge.ending import Event
from runtime_edge.errors import RequestError
from runtime_edge.manifest import TEXT_CLASSIFICATION, TEXT_EMBEDDING, TEXT_GENERATION, Manifest, Variant
from runtime_edge.messages import ChatOptions
from runtime_edge.stamps import Watched
from runtime_edge.tasks import Running, room
from runtime_edge.tasks.decoding import Decoding, closed_error
from runtime_edge.tasks.embed import Classification, Encoding, Floats
from runtime_edge.tasks.generate import TextGeneration
from runtime_edge.text import TextCodec

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Context(TextGeneration):
    """A further sequence over a model's weights, with its own cache: it generates while others do.

    It is closed with its model.
    """

    def __init__(self, decoding: Decoding, watched: Watched) -> None:
        self._own, self._watched = decoding, watched

    def _decoding(self) -> Decoding:
        if self._own.closed.is_set():
            raise closed_error()
        self._watched.check()
        return self._own


class Model(TextGeneration):
    """A model, as `runtime_edge.load` returns it. Threads may share it; close it, or use it in a `with`.

    Attributes:
        manifest: What the artifact says of itself.
        variant: The variant that runs.
        threads: The threads that it runs on.
        backend: What runs it: `tensorrt-rtx`, `tensorrt`, `onnxruntime-cuda` or `onnxruntime`.
    """

    def __init__(
        self,
        manifest: Manifest,
        variant: Variant,
        threads: int,
        codec: TextCodec,
        task: Running,
        backend: str,
        why: list[str],
        watched: Watched,
    ) -> None:
        self.manifest = manifest
        self.variant = variant
        self.threads = threads
        self.backend = backend
        self._why = why  # the session adds to it
        self._watched = watched
        self._codec: TextCodec | None = codec
        self._task: Running | None = task

    @property
    def why(self) -> tuple[str, ...]:
        """Why something faster does not run it; empty where the first choice does."""
        return tuple(self._why)

    def context(self) -> Context:
        """Returns a further sequence over the same weights, which runs while others do. Raises as `generate`.

        Example:
            with_own_cache = model.context()
            print(with_own_cache.generate("Once upon a time", max_new_tokens=40).text)
        """
        return Context(self._decoding().fork(), self._watched)

    def encode(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = False,
        cancel: Event | None = None,
        timeout: float | None = None,
    ) -> Floats:
        """Embeds texts, cut at the model's length, as `SentenceTransformer.encode` does.

        Args:
            texts: Any number of texts.
            prompt_name: Name of the model's prompt that is put before every text. `query` and `document` are names
                that every model has. Default: the model's own default, if it has one.
            prompt: A text that is put before every text, instead of a named one.
            batch_size: Texts that are run together at most, those of like length, padded to the longest of them.
            truncate_dim: How many of an embedding's numbers are returned. Default: as many as the model says, or all.
            normalize_embeddings: Whether each embedding, after that, is divided by its L2 norm.
            cancel: A `threading.Event`; set from another thread, ends the call, within a run of the model too.
            timeout: Seconds after which the call ends. Default: no limit. A run of a TensorRT engine goes on to its
                end, and the next one is not begun.

        Returns:
            float32 [len(texts), dim], in the order of the texts.

        Raises:
            RequestError: A text is not one, the model has no such prompt or fewer dimensions, or it has another task.
            RunEndedError: `cancel` was set, or the time was up.
            ClosedError: The model is closed.

        Example:
            with runtime_edge.load("minilm.lepton") as embedder:
                vectors = embedder.encode(["A valve closed.", "The lamp is on."], normalize_embeddings=True)
                print(vectors.shape, vectors[0] @ vectors[1])
        """
        task, ending = self._encoding(TEXT_EMBEDDING), check.ending(cancel, timeout)
        return task.embed(texts, batch_size, prompt_name, prompt, truncate_dim, normalize_embeddings, ending)

    def encode_query(self, texts: Iterable[str], *, prompt_name: str | None = None, **options: Any) -> Floats:
        """Embeds what is searched for: `encode` with the prompt `query`, which is empty where the model has none.

        Example:
            with runtime_edge.load("minilm.lepton") as embedder:
                texts = ["Hold the button for ten seconds.", "We open at nine."]
                scores = embedder.encode_document(texts) @ embedder.encode_query(["how do I reset it?"])[0]
                print(texts[scores.argmax()])
        """
        return self._encode_as("query", texts, prompt_name, options)

    def encode_document(self, texts: Iterable[str], *, prompt_name: str | None = None, **options: Any) -> Floats:
        """Embeds what is searched: `encode` with the prompt `document`, which is empty where the model has none."""
        return self._encode_as("document", texts, prompt_name, options)

    def _encode_as(self, role: str, texts: Iterable[str], prompt_name: str | None, options: dict[str, Any]) -> Floats:
        name = role if prompt_name is None and options.get("prompt") is None else prompt_name
        return self.encode(texts, prompt_name=name, **options)

    def classify(
        self,
        texts: Iterable[str | tuple[str, str] | Mapping[str, str]],
        *,
        batch_size: int = 32,
        cancel: Event | None = None,
        timeout: float | None = None,
    ) -> list[Classification]:
        """Classifies texts or pairs of texts, cut at the model's length.

        Scores are what transformers' pipeline for text classification gives: a sigmoid for one label and for models
        with several labels a text, the model's own numbers for a regression, else a softmax over the labels.

        Args:
            texts: Texts, and pairs: tuples of two, or dicts with `text` and `text_pair`.
            batch_size: As in `encode`.
            cancel: As in `encode`.
            timeout: As in `encode`.

        Raises:
            RequestError, RunEndedError, ClosedError: As `encode`.

        Example:
            with runtime_edge.load("classifier.lepton") as classifier:
                for result in classifier.classify(["It works.", ("It works.", "It does not.")]):
                    print(result.label, round(result.score, 3))
        """
        ending = check.ending(cancel, timeout)
        return self._encoding(TEXT_CLASSIFICATION).classify(texts, batch_size, ending)

    def rerank(
        self,
        query: str,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        cancel: Event | None = None,
        timeout: float | None = None,
    ) -> Floats:
        """Scores how well texts answer a query, as `CrossEncoder.predict` does for pairs of the query and each text.

        Scores are a sigmoid of the model's number, or that number itself where the model says so.

        Args:
            query: What is searched for.
            texts: Any number of texts.
            prompt_name: Name of the model's prompt that is put before the query. Default: the model's own default.
            prompt: A text that is put before the query, instead of a named one.
            batch_size: As in `encode`.
            cancel: As in `encode`.
            timeout: As in `encode`.

        Returns:
            float32 [len(texts)], in the order of the texts; higher is better.

        Raises:
            RequestError: The model has several labels; or as `encode`.
            RunEndedError, ClosedError: As `encode`.

        Example:
            with runtime_edge.load("reranker.lepton") as reranker:
                print(reranker.rerank("how do I reset it?", ["Hold the button.", "We open at nine."]))
        """
        task, ending = self._encoding(TEXT_CLASSIFICATION), check.ending(cancel, timeout)
        return task.rerank(query, texts, batch_size, prompt_name, prompt, ending)

    def tokenize(
        self, text: str | Sequence[Any], *, add_special_tokens: bool = True, **chat: Unpack[ChatOptions]
    ) -> list[int]:
        """Token ids of a text, or of chat messages as `generate` would see them.

        Args:
            text: Text, or messages.
            add_special_tokens: Whether text gets the tokenizer's own; a chat template writes those of messages itself.
            chat: Options of messages, as in `generate`.

        Raises:
            RequestError: It is neither, or options of messages go with a text.
            ChatTemplateError: There is no chat template, or it refuses the messages.

        Example:
            token_ids = model.tokenize("Once upon a time")
            print(len(token_ids), model.detokenize(token_ids))
        """
        return self._open_codec().tokenize(text, chat, add_special_tokens=add_special_tokens)

    def detokenize(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids (raises `RequestError`)."""
        return self._open_codec().decode(token_ids, skip_special_tokens=skip_special_tokens)

    def close(self) -> None:
        """Frees what the model holds; generations that run end with `ClosedError`. Closing twice is no error."""
        task = self._task
        self._task = self._codec = None
        if task is not None:
            task.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._task is None else f"{self.backend}, {self.threads} threads"
        return f"<runtime_edge.Model {self.manifest.name!r}: {self.manifest.task}, {self.variant.name}, {state}>"

    def _decoding(self) -> Decoding:
        task = self._open_task()
        if not isinstance(task, Decoding):
            raise self._other_task(TEXT_GENERATION)
        return task

    def _encoding(self, wanted: str) -> Encoding:
        task = self._open_task()
        if not isinstance(task, Encoding) or self.manifest.task != wanted:
            raise self._other_task(wanted)
        return task

    @property
    def task(self) -> Any:
        """The task that the model is for, with methods of its own: see `runtime_edge.tasks` (raises `ClosedError`)."""
        return self._open_task()

    def _open_task(self) -> Running:
        task = self._task  # read once: another thread may close the model meanwhile
        if task is None:
            raise closed_error()
        self._watched.check()
        return task

    def _open_codec(self) -> TextCodec:
        codec = self._codec
        if codec is None:
            raise closed_error()
        return codec

    def _other_task(self, wanted: str) -> RequestError:
        task = self.manifest.task
        return RequestError(
            f"{self.manifest.name}: expected a model for {wanted}, found one for {task}",
            hint=f"this model has {room(task).METHODS}",
        )
