"""Decoding against a float64 reference: cached or not, in chunks, over growth; and what a request may ask."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_edge
from runtime_edge.backends.onnxruntime import PREFILL_CHUNK, OrtDecoderState
from runtime_edge.errors import ArtifactError, ClosedError, PromptTooLongError, RequestError
from runtime_edge.tasks import decoding as decoding_module
from tests.runtime_edge import tiny

TOLERANCE = 1e-4  # absolute, on logits of about 3 in size


def tokens(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, count)]


def reference_scores(logits: np.ndarray, token_ids: list[int]) -> np.ndarray:
    logs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1)[:, None]
    return logs[np.arange(len(token_ids) - 1), token_ids[1:]]


def greedy(weights: tiny.Weights, prompt: list[int], count: int) -> list[int]:
    found = list(prompt)
    for _ in range(count):
        found.append(int(tiny.reference_logits(weights, found)[-1].argmax()))
    return found[len(prompt) :]


@pytest.mark.parametrize("length", [1, 2, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 77])
def test_logits_of_any_length(model: runtime_edge.Model, weights: tiny.Weights, length: int) -> None:
    ids = tokens(length)
    found = model.logits(ids)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tiny.reference_logits(weights, ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rows", [1, 3, 64, 10_000])
def test_score_does_not_depend_on_its_runs(
    model: runtime_edge.Model, weights: tiny.Weights, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(decoding_module, "_LOGITS_BYTES", rows * 4 * tiny.VOCAB)
    ids = tokens(700)
    found = model.score(ids)
    assert (found.shape, found.dtype) == ((699,), np.float32)
    expected = reference_scores(tiny.reference_logits(weights, ids), ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_score_of_one_token_is_empty(model: runtime_edge.Model) -> None:
    assert model.score([5]).shape == (0,)


def test_log_probabilities_are_stable() -> None:
    logits = np.array([[1e4, -1e4, 0.0], [-1e38, 1e38, -1e38]], np.float32)
    found = decoding_module.log_probabilities(logits, np.array([1, 1]))
    np.testing.assert_allclose(found, [-2e4, 0.0])


def test_greedy_equals_the_reference_without_a_cache(model: runtime_edge.Model, weights: tiny.Weights) -> None:
    prompt = tokens(30)
    made = model.generate(prompt, max_new_tokens=40)
    assert made.token_ids == greedy(weights, prompt, 40)
    assert (made.finish_reason, made.stats.new_tokens, made.stats.prompt_tokens) == ("length", 40, 30)


@pytest.mark.parametrize("keeps_none", [True, False], ids=["", "of an earlier format"])
def test_runs_but_the_last_make_no_logits(
    weights: tiny.Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps_none: bool
) -> None:
    """A graph of an earlier format makes those of one position, as it takes none for all."""
    artifact = tiny.write_decoder(tmp_path / "tiny", weights=weights, keeps_none=keeps_none)
    rows: list[int] = []
    run = OrtDecoderState._run_many

    def counting(state: OrtDecoderState, token_ids: Any, keep: Any, logits: Any) -> None:
        run(state, token_ids, keep, logits)
        rows.append(logits.shape[1])

    monkeypatch.setattr(OrtDecoderState, "_run_many", counting)
    prompt = tokens(2 * PREFILL_CHUNK + 5)
    with runtime_edge.load(artifact) as opened:
        assert opened.generate(prompt, max_new_tokens=3).token_ids == greedy(weights, prompt, 3)
    assert rows == ([0, 0, 1] if keeps_none else [1, 1, 1])


def test_the_cache_grows_and_keeps_what_it_held(
    built: Path, weights: tiny.Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_module, "_RESERVE", 1)
    prompt = tokens(50)
    with runtime_edge.load(built, threads=1) as model:
        made = model.generate(prompt, max_new_tokens=300)
        cache = model._decoding()._state.cache
        assert cache.capacity == 512  # 64, doubled three times
        assert len(made.token_ids) == 300
        expected = tiny.reference_logits(weights, prompt + made.token_ids)
        assert [int(row.argmax()) for row in expected[49:-1]] == made.token_ids


def test_buffers_are_reused_and_decoding_allocates_none(model: runtime_edge.Model) -> None:
    model.generate(tokens(40), max_new_tokens=20)
    buffers = [id(buffer) for buffer in model._decoding()._state.cache.buffers]
    model.generate(tokens(40)[:30], max_new_tokens=20)
    assert [id(buffer) for buffer in model._decoding()._state.cache.buffers] == buffers


@pytest.mark.parametrize(
    ("second", "cached"), [("same", 99), ("longer", 100), ("shorter", 59), ("other", 0), ("mid", 40)]
)
def test_a_shared_prefix_is_not_run_again(
    model: runtime_edge.Model, weights: tiny.Weights, second: str, cached: int
) -> None:
    first = tokens(100)
    prompts = {
        "same": first,
        "longer": [*first, first[0] ^ 1, *tokens(20, seed=3)],
        "shorter": first[:60],
        "other": [first[0] ^ 1, *first[1:]],
        "mid": [*first[:40], first[40] ^ 1, *first[41:]],
    }
    answer = model.generate(first, max_new_tokens=2).token_ids
    if second == "longer":
        assert prompts["longer"][100] != answer[0]
    made = model.generate(prompts[second], max_new_tokens=12)
    assert made.stats.cached_tokens == cached
    assert made.token_ids == greedy(weights, prompts[second], 12)


def test_a_chat_that_resends_its_history_runs_only_what_is_new(model: runtime_edge.Model) -> None:
    prompt = tokens(50)
    answer = model.generate(prompt, max_new_tokens=10).token_ids
    made = model.generate([*prompt, *answer, *tokens(5, seed=9)], max_new_tokens=1)
    assert made.stats.cached_tokens == 59  # all but the last token of the answer, which was never run


def test_score_leaves_no_trace_in_generation(model: runtime_edge.Model, weights: tiny.Weights) -> None:
    prompt = tokens(20)
    model.generate(prompt, max_new_tokens=5)
    model.score(tokens(90, seed=4))
    assert model.generate(prompt, max_new_tokens=8).token_ids == greedy(weights, prompt, 8)


def test_ends_where_the_length_is_full(tmp_path: Path) -> None:
    with runtime_edge.load(tiny.write_decoder(tmp_path, max_seq_len=100), threads=1) as model:
        made = model.generate(tokens(90))
        assert (len(made.token_ids), made.finish_reason) == (11, "length")
        assert len(model.generate(tokens(100)).token_ids) == 1
        assert model.logits(tokens(100)).shape == (100, tiny.VOCAB)
        for call in (model.generate, model.score, model.logits):
            with pytest.raises(PromptTooLongError, match=r"at most 100 tokens .* found 101") as caught:
                call(tokens(101))
            assert "by 1 tokens" in str(caught.value.hint)


def test_long_prompt_is_refused_before_a_chat_loses_its_cache(tmp_path: Path) -> None:
    with runtime_edge.load(tiny.write_decoder(tmp_path, max_seq_len=100), threads=1) as model:
        model.generate(tokens(50), max_new_tokens=1)
        with pytest.raises(PromptTooLongError):
            model.generate(tokens(101))
        assert model.generate(tokens(50), max_new_tokens=1).stats.cached_tokens == 49


def test_stream_gives_what_generate_gives(model: runtime_edge.Model) -> None:
    whole = model.generate("Hello", max_new_tokens=30)
    chunks = list(model.stream("Hello", max_new_tokens=30))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.token_id for chunk in chunks] == whole.token_ids
    assert [chunk.finish_reason for chunk in chunks] == [None] * 29 + ["length"]
    assert chunks[-1].stats is not None
    assert all(chunk.stats is None for chunk in chunks[:-1])


def test_text_prompt_gets_bos_from_the_tokenizer_and_chat_from_its_template(model: runtime_edge.Model) -> None:
    assert model.tokenize("a")[0] == tiny.BOS
    ids = model.tokenize([{"role": "user", "content": "a"}])
    assert ids.count(tiny.BOS) == 1
    assert ids.count(tiny.TURN) == 2
    assert model.detokenize(ids, skip_special_tokens=False) == "<bos><|turn|>user\na<|turn|>assistant\n"
    by_ids = model.generate(ids, max_new_tokens=5)
    by_messages = model.generate([{"role": "user", "content": "a"}], max_new_tokens=5)
    assert by_messages.stats.prompt_tokens == len(ids)
    assert by_messages.token_ids == by_ids.token_ids


def test_eos_ends_and_has_no_text(tmp_path: Path, weights: tiny.Weights) -> None:
    prompt = tokens(20)
    second = greedy(weights, prompt, 2)[1]
    moved = tiny.Weights(weights.embedding, weights.qkv, weights.out, weights.head.copy())
    moved.head[:, [second, tiny.EOS]] = weights.head[:, [tiny.EOS, second]]
    with runtime_edge.load(tiny.write_decoder(tmp_path, weights=moved), threads=1) as model:
        made = model.generate(prompt)
        assert (made.token_ids[1:], made.finish_reason) == ([tiny.EOS], "stop")
        assert made.text == model.detokenize(made.token_ids[:1])


def test_stop_token_ids_end_besides_eos(model: runtime_edge.Model) -> None:
    prompt = tokens(20)
    free = model.generate(prompt, max_new_tokens=10).token_ids
    made = model.generate(prompt, max_new_tokens=10, stop_token_ids=[free[4]])
    stop = free.index(free[4])
    assert (made.token_ids, made.finish_reason) == (free[: stop + 1], "stop")
    assert made.text == model.detokenize(free[:stop])


def test_stop_string_across_tokens_is_cut_out(model: runtime_edge.Model) -> None:
    free = model.generate("Hello", max_new_tokens=60).text
    start = next(i for i in range(5, 50) if "\ufffd" not in free[i : i + 3] and free.index(free[i : i + 3]) == i)
    stop = free[start : start + 3]  # three characters, each a token or more
    chunks = list(model.stream("Hello", max_new_tokens=60, stop=["never there", stop]))
    assert "".join(chunk.text for chunk in chunks) == free[:start]
    assert chunks[-1].finish_reason == "stop"
    assert model.generate("Hello", max_new_tokens=60, stop=stop).text == free[:start]


def test_text_held_for_a_stop_string_comes_at_the_end(model: runtime_edge.Model) -> None:
    free = model.generate("Hello", max_new_tokens=30).text
    made = model.generate("Hello", max_new_tokens=30, stop=[free[-2:] + "…", free[-1:] + "…"])
    assert (made.text, made.finish_reason) == (free, "length")


def test_seed_repeats_and_differs(model: runtime_edge.Model) -> None:
    def draw(seed: int | None) -> list[int]:
        return model.generate(tokens(9), max_new_tokens=20, temperature=1.0, seed=seed).token_ids

    assert draw(7) == draw(7)
    assert len({tuple(draw(seed)) for seed in (7, 8, None, None)}) == 4


def test_cancel_before_during_and_at_the_prompt(model: runtime_edge.Model) -> None:
    cancel = threading.Event()
    made = []
    for chunk in model.stream(tokens(10), cancel=cancel):
        made.append(chunk)
        if len(made) == 4:
            cancel.set()
    assert [chunk.token_id is None for chunk in made] == [False] * 4 + [True]
    assert made[-1].finish_reason == "cancelled"
    before = model.generate(tokens(1500, seed=5), cancel=cancel)
    assert (before.text, before.token_ids, before.finish_reason) == ("", [], "cancelled")
    assert before.stats.new_tokens == 0


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, r"temperature: expected a number >= 0, found -0\.1"),
    ({"temperature": float("nan")}, "temperature: expected a number >= 0, found nan"),
    ({"temperature": "hot"}, "temperature: .* found str 'hot'"),
    ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\], found 0\.0"),
    ({"top_p": 1.5}, "top_p: .* found 1.5"),
    ({"top_k": -1}, "top_k: expected a whole number >= 0, found -1"),
    ({"top_k": 1.5}, "top_k: .* found float 1.5"),
    ({"min_p": 2}, "min_p: .* found 2.0"),
    ({"repetition_penalty": 0}, "repetition_penalty: expected a number from 1e-09 to 1e\\+09, found 0.0"),
    ({"seed": -1}, "seed: .* found -1"),
    ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number >= 1, found 0"),
    ({"max_new_tokens": True}, "max_new_tokens: .* found bool True"),
    ({"stop": [""]}, "stop: expected strings that are not empty, found ''"),
    ({"stop": [3]}, "stop: .* found 3"),
    ({"stop": 3}, "stop: expected strings, found int"),
    ({"stop_token_ids": [300]}, "stop_token_ids: expected token ids below 300 .*, found 300"),
    ({"drafts": -1}, "drafts: expected True, False or a whole number >= 0, found -1"),
    ({"drafts": 2.0}, "drafts: expected True, False or a whole number >= 0, found float 2.0"),
    ({"drafts": "yes"}, "drafts: .* found str 'yes'"),
    ({"drafts": None}, "drafts: .* found NoneType None"),
    ({"cancel": True}, "cancel: expected a threading.Event, found bool"),
]
PROMPTS: list[tuple[Any, str]] = [
    ([], "prompt: expected at least one token, found none"),
    ([1, 300], "prompt: expected token ids below 300 .*, found 300"),
    ([-1], "prompt: expected a whole number >= 0, found -1"),
    ([1, "a"], "prompt: .* found str 'a'"),
    ([["a"]], r"prompts\[0\]: expected a whole number >= 0, found str 'a'"),
    (7, "prompt: expected text, token ids or a list of messages, found int"),
    (b"a", "prompt: expected text, .* found bytes"),
    ({"role": "user", "content": "a"}, "prompt: .* found dict"),
    ([{"role": 3, "content": "a"}], r"messages\[0\]\.role: expected text, found int"),
    ([{"role": "user"}], r"messages\[0\]\.content: expected what the user says, found none"),
    ([{"role": "user", "content": "a"}, 3], r"messages\[1\]: expected a dict"),
    ("\ud800", "text: expected Unicode text, found a lone surrogate at character 0"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_bad_option_is_named_at_the_call(model: runtime_edge.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.stream("Hello", **options)  # not even a next


@pytest.mark.parametrize(("prompt", "message"), PROMPTS)
def test_bad_prompt_is_named(model: runtime_edge.Model, prompt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.generate(prompt)


def test_numpy_ids_are_ids(model: runtime_edge.Model) -> None:
    ids = np.array(tokens(12))
    assert model.generate(ids, max_new_tokens=3).token_ids == model.generate(ids.tolist(), max_new_tokens=3).token_ids
    assert model.score(ids).shape == (11,)


def test_damaged_weights_are_an_error_and_not_a_text(tmp_path: Path, weights: tiny.Weights) -> None:
    head = weights.head.copy()
    head[3, 4] = np.nan
    broken = tiny.Weights(weights.embedding, weights.qkv, weights.out, head)
    with (
        runtime_edge.load(tiny.write_decoder(tmp_path, weights=broken), threads=1) as model,
        pytest.raises(ArtifactError, match="expected finite logits, found nan"),
    ):
        model.generate("a", max_new_tokens=1)


@pytest.fixture
def closed(built: Path) -> tuple[runtime_edge.Model, runtime_edge.Context]:
    model = runtime_edge.load(built, threads=1)
    context = model.context()
    model.close()
    model.close()
    return model, context


def test_use_after_close(closed: tuple[runtime_edge.Model, runtime_edge.Context]) -> None:
    model, context = closed
    calls = [
        lambda: model.generate("a"), lambda: model.stream("a"), lambda: model.score([1]), lambda: model.context(),
        lambda: model.logits([1]), lambda: model.tokenize("a"), lambda: model.detokenize([1]),
        lambda: model.encode(["a"]), lambda: context.generate("a"), lambda: context.score([1]),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ClosedError, match="expected an open one, found it closed"):
            call()
    assert repr(model).endswith("closed>")


def test_close_by_another_thread_at_any_moment_of_a_call(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime_edge.load(built, threads=1)
    monkeypatch.setattr(model._watched, "check", model.close)  # between what a call looks at first and what it uses
    with pytest.raises(ClosedError):
        model.generate("a", max_new_tokens=2)


def test_close_during_a_stream_ends_it(built: Path) -> None:
    model = runtime_edge.load(built, threads=1)
    stream = model.stream("a")
    next(stream)
    model.close()
    with pytest.raises(ClosedError):
        next(stream)


def test_encoder_methods_name_the_task(model: runtime_edge.Model) -> None:
    with pytest.raises(RequestError, match="expected a model for text-embedding, found one for text-generation"):
        model.encode(["a"])
    with pytest.raises(RequestError, match="expected a model for text-classification, found one") as caught:
        model.classify(["a"])
    assert caught.value.hint == "this model has generate, stream, score, logits"
