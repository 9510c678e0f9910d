"""Text generation: the methods that a model and its contexts share."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from runtime_edge import request as check
from runtime_edge.ending import Ending, Event
from runtime_edge.errors import PromptTooLongError, RequestError, RequestWarning
from runtime_edge.messages import ChatOptions
from runtime_edge.request import Options, Request
from runtime_edge.tasks.decoding import Decoding
from runtime_edge.tasks.results import Chunk, Generation

if TYPE_CHECKING:
    from typing_extensions import Unpack

Floats = NDArray[np.float32]
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
Prompts = list[str] | list[list[int]] | list[list[dict[str, Any]]]

_FILTERS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # what needs a temperature, and the values that filter nothing
_CHAT = frozenset(ChatOptions.__annotations__)


class TextGeneration(ABC):
    """What a model and a context of it do with text."""

    @abstractmethod
    def _decoding(self) -> Decoding:
        """Returns the sequence to use; raises `ClosedError`, and `RequestError` where the model has another task."""

    @overload
    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Generation: ...
    @overload
    def generate(self, prompt: Prompts, **options: Unpack[Options]) -> list[Generation]: ...

    def generate(self, prompt: Prompt | Prompts, **options: Unpack[Options]) -> Generation | list[Generation]:
        """Continues a prompt. One generation of a model runs at a time; other threads wait for their turn.

        The first element of a list tells what it is: numbers are one prompt's token ids, dicts are one conversation,
        texts or lists are several prompts. Several are checked before the first one runs, and answered one after the
        other, each as if it were alone: the same `seed` for each, one `timeout` for all.

        Args:
            prompt: Text; or token ids; or chat messages, `{"role": …, "content": …}`, for the model's chat template;
                or a list of several of these.
            max_new_tokens: Tokens to make at most; None (the default) goes on until the model ends or its length is
                full, where every answer ends with the reason `length`.
            temperature: 0 (the default) takes the likeliest token each time; above, tokens are drawn.
            top_k: Draw from the k likeliest. Like `top_p` and `min_p` it has no effect at temperature 0, where a
                `RequestWarning` says so.
            top_p: Draw from the fewest likeliest whose probabilities sum to this.
            min_p: Draw from those at least this share as likely as the likeliest.
            repetition_penalty: Above 1, makes tokens of the prompt and the answer less likely; from 1e-9 to 1e9.
            seed: Equal seeds draw equally; None (the default) draws anew each time. Any whole number from 0. At
                temperature 0 all seeds give the same answer.
            stop: Strings that end the text, and are not part of it. They are looked for in the text of all tokens,
                special ones too, and may begin in the prompt, as `stop_strings` of transformers.
            stop_token_ids: Tokens that end it, besides the model's own.
            cancel: Set from another thread, ends it with the reason `cancelled`, within a run of the model too.
            timeout: Seconds from the first token's work on (time spent waiting for a turn counts), after which it ends
                with the reason `timeout`, within a run of the model too; a TensorRT engine ends between two runs.
                None (the default) sets no limit.
            drafts: True copies what may come next from earlier text and checks it several tokens in one run, which is
                faster where an answer repeats its context; a number is the most to copy at once. Tokens are drawn as
                ever, but from logits that may differ by rounding: a quantized model may go on otherwise near a tie.
                Without effect on a GPU, where a `RequestWarning` says so.
            tools: With messages: JSON schemas of functions that the model may call, for its chat template.
            documents: With messages: dicts with `title` and `text`, for its chat template.
            chat_template: With messages: the name of one of the model's templates. None (the default) takes `tool_use`
                where tools are given and there is one, else `default`, as transformers does.
            chat_template_kwargs: With messages: further variables of the template, as `{"enable_thinking": False}`.
            add_generation_prompt: With messages: whether the prompt ends with what begins an answer; the default is
                True, unless the last message is continued.
            continue_final_message: With messages: True goes on from the last message's content, in place of a new
                answer; a name goes on from that field.

        Raises:
            RequestError: An option is out of its range or goes with another kind of prompt, or the model has another
                task.
            PromptTooLongError: The prompt exceeds the model's length.
            ChatTemplateError: Messages were given and there is no template, or it refuses them.
            ClosedError: The model is closed.

        Example:
            model = runtime_edge.load("smollm2.lepton")

            answer = model.generate("Once upon a time", max_new_tokens=40)
            print(answer.text, answer.finish_reason, answer.stats.decode_tok_s)

            messages = [{"role": "user", "content": "What is edge computing?"}]
            print(model.generate(messages, max_new_tokens=40, temperature=0.7, seed=1).text)
        """
        prompts = check.several(prompt)
        decoding = self._decoding()
        if prompts is None:
            request = _request(decoding, prompt, "prompt", **options)
            _warn(decoding, request)
            return _whole(decoding.run(request))
        requests = [_request(decoding, item, f"prompts[{index}]", **options) for index, item in enumerate(prompts)]
        _warn(decoding, requests[0])
        ending = requests[0].ending  # one clock for all
        return [_whole(decoding.run(replace(request, ending=ending))) for request in requests]

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Generator[Chunk, None, None]:
        """`generate` of one prompt, token by token.

        The request is checked at once; the turn is held from the first `next` on. An iterator that is left before its
        end gives the turn back when it is closed or collected.

        Args:
            prompt: One prompt, as in `generate`.
            options: As in `generate`.

        Raises:
            RequestError, PromptTooLongError, ChatTemplateError, ClosedError: As `generate`.

        Example:
            for chunk in model.stream("Once upon a time", max_new_tokens=40):
                print(chunk.text, end="", flush=True)
            print(chunk.finish_reason, chunk.stats.new_tokens)
        """
        if check.several(prompt) is not None:
            raise RequestError("prompt: expected one prompt to stream, found a list of several", hint="use generate")
        decoding = self._decoding()
        request = _request(decoding, prompt, "prompt", **options)
        _warn(decoding, request)
        return decoding.run(request)

    def score(
        self,
        prompt: Prompt,
        *,
        cancel: Event | None = None,
        timeout: float | None = None,
        **chat: Unpack[ChatOptions],
    ) -> Floats:
        """Log-probability (natural) of each token after the first, given those before it; float32 [len - 1].

        Args:
            prompt: Text, of which the tokenizer's special tokens are part; or token ids; or chat messages, which end
                without what begins an answer unless `add_generation_prompt=True`. `tokenize` gives the same tokens.
            cancel: A `threading.Event`; set from another thread, ends the call.
            timeout: Seconds after which the call ends. Default: no limit.
            chat: Options of messages, as in `generate`.

        Raises:
            RequestError, PromptTooLongError, ChatTemplateError, ClosedError: As `generate`.
            RunEndedError: `cancel` was set, or the time was up.

        Example:
            log_probabilities = model.score("Paris is the capital of France.")
            print(log_probabilities.mean())
        """
        decoding = self._decoding()
        return decoding.score(self._tokens(decoding, prompt, chat), check.ending(cancel, timeout))

    def logits(self, token_ids: Prompt) -> Floats:
        """Logits after every token; float32 [len, vocab].

        They take len x vocab x 4 bytes: `logits_blocks` bounds that. Raises as `score`.
        """
        decoding = self._decoding()
        return decoding.logits(self._tokens(decoding, token_ids, {}), Ending())

    def logits_blocks(self, token_ids: Prompt) -> Iterator[tuple[int, Floats]]:
        """Yields the position of a block's first token and logits after each of its tokens, float32 [n, vocab].

        Memory is bounded whatever the length: a block is valid until the next one is asked for. Raises as `score`.
        """
        decoding = self._decoding()
        return decoding.logits_blocks(self._tokens(decoding, token_ids, {}), Ending())

    def _tokens(self, decoding: Decoding, prompt: Any, chat: Mapping[str, Any]) -> list[int]:
        """Token ids of a text that no answer follows."""
        if check.several(prompt) is not None:
            raise RequestError("prompt: expected one text, found a list of several", hint="give one at a time")
        return _token_ids(decoding, prompt, "prompt", chat, answer=False)


def _request(
    decoding: Decoding,
    prompt: Any,
    name: str,
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
    timeout: float | None = None,
    drafts: bool | int = False,
    **chat: Unpack[ChatOptions],
) -> Request:
    """Checks a request; `name` is what errors call the prompt."""
    unknown = sorted(set(chat) - _CHAT)
    if unknown:
        raise TypeError(f"generate() got an unexpected keyword argument {unknown[0]!r}")
    vocab_size = decoding.decoder.vocab_size
    return Request(
        token_ids=_token_ids(decoding, prompt, name, chat, answer=True),
        max_new_tokens=None if max_new_tokens is None else check.integer("max_new_tokens", max_new_tokens, 1),
        sampling=check.sampling_options(temperature, top_k, top_p, min_p, repetition_penalty, seed),
        stop=check.stop_strings(stop),
        stop_token_ids=decoding.codec.eos_ids.union(check.token_ids("stop_token_ids", stop_token_ids, vocab_size)),
        ending=check.ending(cancel, timeout),
        drafts=check.drafts(drafts),
    )


def _token_ids(decoding: Decoding, prompt: Any, name: str, chat: Mapping[str, Any], *, answer: bool) -> list[int]:
    token_ids = decoding.codec.prompt_ids(prompt, decoding.decoder.vocab_size, chat, name, answer=answer)
    longest = decoding.decoder.max_seq_len
    if not token_ids:
        raise RequestError(f"{name}: expected at least one token, found none")
    if len(token_ids) > longest:
        raise PromptTooLongError(
            f"{name}: expected at most {longest} tokens (max_seq_len), found {len(token_ids)}",
            hint=f"shorten it by {len(token_ids) - longest} tokens, or build with a larger --max-seq-len",
        )
    return token_ids


def _warn(decoding: Decoding, request: Request) -> None:
    """Tells the caller of a method of options that have no effect."""
    sampling = request.sampling
    idle = [name for name, value in _FILTERS.items() if getattr(sampling, name) != value]
    if sampling.temperature == 0 and idle:
        warnings.warn(
            f"{', '.join(idle)}: without effect at temperature 0 (the default), which takes the likeliest token",
            RequestWarning,
            stacklevel=3,
        )
    if request.drafts and not decoding.can_draft:
        warnings.warn("drafts: without effect on this backend, which checks none", RequestWarning, stacklevel=3)


def _whole(chunks: Generator[Chunk, None, None]) -> Generation:
    """Collects a stream."""
    with closing(chunks):  # an interrupted call must not keep the turn while its traceback lives
        parts = list(chunks)
    last = parts[-1]
    assert last.finish_reason is not None  # a stream always ends with a chunk that says why
    assert last.stats is not None
    token_ids = [chunk.token_id for chunk in parts if chunk.token_id is not None]
    return Generation("".join(chunk.text for chunk in parts), token_ids, last.finish_reason, last.stats)
