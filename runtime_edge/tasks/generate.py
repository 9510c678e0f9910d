"""Text generation: the methods that a model and its contexts share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge import request as check
from runtime_edge.errors import PromptTooLongError, RequestError
from runtime_edge.request import Event, Request
from runtime_edge.tasks.decoding import Decoding
from runtime_edge.tasks.results import Chunk, Generation

Floats = NDArray[np.float32]
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


class TextGeneration(ABC):
    """What a model and a context of it do with text."""

    @abstractmethod
    def _decoding(self) -> Decoding:
        """Returns the sequence to use; raises `ClosedError`, and `RequestError` where the model has another task."""

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] = (),
        stop_token_ids: Iterable[int] = (),
        cancel: Event | None = None,
        drafts: bool | int = False,
    ) -> Generation:
        """Continues a prompt. One generation of a model runs at a time; other threads wait for their turn.

        Args:
            prompt: Text; or token ids; or chat messages, `{"role": …, "content": …}`, for the model's chat template.
            max_new_tokens: Tokens to make at most; None goes on until the model ends or its length is full.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn.
            top_k: Draw from the k likeliest.
            top_p: Draw from the fewest likeliest whose probabilities sum to this.
            min_p: Draw from those at least this share as likely as the likeliest.
            repetition_penalty: Above 1, makes tokens of the prompt and the answer less likely.
            seed: Equal seeds draw equally; None draws anew each time.
            stop: Strings that end the text, and are not part of it.
            stop_token_ids: Tokens that end it, besides the model's own.
            cancel: Set from another thread, ends it after the token in work.
            drafts: True copies what may come next from earlier text and checks it several tokens in one run, which is
                faster where an answer repeats its context; a number is the most to copy at once. Tokens are drawn as
                ever, but from logits that may differ by rounding: a quantized model may go on otherwise near a tie.
                Without effect on a GPU.

        Raises:
            RequestError: An option is out of its range, or the model has another task.
            PromptTooLongError: The prompt exceeds the model's length.
            ChatTemplateError: Messages were given and there is no template, or it refuses them.
            ClosedError: The model is closed.
        """
        chunks = self.stream(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            stop_token_ids=stop_token_ids,
            cancel=cancel,
            drafts=drafts,
        )
        with closing(chunks):  # an interrupted call must not keep the turn while its traceback lives
            made = list(chunks)
        last = made[-1]
        assert last.finish_reason is not None  # a stream always ends with a chunk that says why
        assert last.stats is not None
        token_ids = [chunk.token_id for chunk in made if chunk.token_id is not None]
        return Generation("".join(chunk.text for chunk in made), token_ids, last.finish_reason, last.stats)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] = (),
        stop_token_ids: Iterable[int] = (),
        cancel: Event | None = None,
        drafts: bool | int = False,
    ) -> Generator[Chunk, None, None]:
        """`generate`, token by token. The request is checked at once; the turn is held from the first `next` on.

        An iterator that is left before its end gives the turn back when it is closed or collected.
        """
        decoding = self._decoding()
        codec, vocab_size = decoding.codec, decoding.decoder.vocab_size
        sampling = check.sampling_options(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise RequestError(f"cancel: expected a threading.Event, found {type(cancel).__name__}")
        request = Request(
            token_ids=self._checked(codec.prompt_ids(prompt, vocab_size)),
            max_new_tokens=None if max_new_tokens is None else check.integer("max_new_tokens", max_new_tokens, 1),
            sampling=sampling,
            stop=check.stop_strings(stop),
            stop_token_ids=codec.eos_ids.union(check.token_ids("stop_token_ids", stop_token_ids, vocab_size)),
            cancel=cancel,
            drafts=check.drafts(drafts),
        )
        return decoding.run(request)

    def score(self, token_ids: Sequence[int]) -> Floats:
        """Log-probability (natural) of each token after the first, given those before it; float32 [len - 1].

        Raises `RequestError`, `PromptTooLongError`, `ClosedError` as `generate`.
        """
        decoding = self._decoding()
        return decoding.score(self._checked(check.token_ids("token_ids", token_ids, decoding.decoder.vocab_size)))

    def logits(self, token_ids: Sequence[int]) -> Floats:
        """Logits after every token; float32 [len, vocab], which is the caller's to bound. Raises as `score`."""
        decoding = self._decoding()
        return decoding.logits(self._checked(check.token_ids("token_ids", token_ids, decoding.decoder.vocab_size)))

    def logits_blocks(self, token_ids: Sequence[int]) -> Iterator[tuple[int, Floats]]:
        """Yields the position of a block's first token and logits after each of its tokens, float32 [n, vocab].

        Memory is bounded whatever the length: a block is valid until the next one is asked for. Raises as `score`.
        """
        decoding = self._decoding()
        return decoding.logits_blocks(
            self._checked(check.token_ids("token_ids", token_ids, decoding.decoder.vocab_size))
        )

    def _checked(self, token_ids: list[int]) -> list[int]:
        longest = self._decoding().decoder.max_seq_len
        if not token_ids:
            raise RequestError("prompt: expected at least one token, found none")
        if len(token_ids) > longest:
            raise PromptTooLongError(
                f"prompt: expected at most {longest} tokens (max_seq_len), found {len(token_ids)}",
                hint=f"shorten it by {len(token_ids) - longest} tokens, or build with a larger --max-seq-len",
            )
        return token_ids
