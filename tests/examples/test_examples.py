"""Each example does what its header says, with tiny artifacts: it is run as its reader would run it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import runtime_edge
from examples import chat, embed_and_search, stream_to_socket, threads
from tests.runtime_edge import tiny

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
QUESTION = {"role": "user", "content": "one two"}


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Iterator[runtime_edge.Model]:
    with runtime_edge.load(tiny_artifact, threads=1) as model:
        yield model


def run(name: str, *arguments: object, given: str = "") -> str:
    """Runs an example in a process of its own; returns what it prints."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scored(line: str) -> tuple[float, str]:
    score, _, text = line.strip().partition("  ")
    return float(score), text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_header_says_what_it_shows_and_how_to_run_it(path: Path) -> None:
    shows, empty, how = path.read_text().splitlines()[:3]
    assert re.fullmatch(r'"""[A-Z].+\.', shows)
    assert empty == ""
    assert how.startswith("Run it: ")
    assert f"python examples/{path.name} " in how


def test_the_table_has_every_example() -> None:
    table = (ROOT / "examples" / "README.md").read_text()
    assert re.findall(r"^\| \[(\w+\.py)\]\(\1\)", table, re.MULTILINE) == sorted(
        (path.name for path in EXAMPLES), key=table.index
    )
    assert len(EXAMPLES) == table.count("\n| [")


def test_chat_answers_in_the_conversation(
    tiny_artifact: Path, model: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = iter(["one two", "three", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: print(prompt, end="") or next(given))
    chat.main(str(tiny_artifact))
    first = model.generate([QUESTION], max_new_tokens=300).text
    messages = [QUESTION, {"role": "assistant", "content": first}, {"role": "user", "content": "three"}]
    second = model.generate(messages, max_new_tokens=300).text
    assert capsys.readouterr().out == f"> {first}\n> {second}\n> "
    assert second != model.generate(messages[2:], max_new_tokens=300).text


def test_chat_ends_with_its_input(tiny_artifact: Path) -> None:
    assert run("chat", tiny_artifact) == "> "


def test_chat_forgets_the_oldest_turn(model: runtime_edge.Model) -> None:
    longest = model.manifest.decoder.max_seq_len
    old = [{"role": "user", "content": "six " * longest}, {"role": "assistant", "content": "five"}]
    messages = [*old, QUESTION]
    text = "".join(chunk.text for chunk in chat.stream(model, messages))
    assert messages == [QUESTION]
    assert text == model.generate([QUESTION], max_new_tokens=300).text
    with pytest.raises(runtime_edge.PromptTooLongError):
        chat.stream(model, old[:1])


@contextmanager
def serving(model: runtime_edge.Model) -> Iterator[Callable[[], socket.socket]]:
    with stream_to_socket.server(model, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield lambda: socket.create_connection(server.server_address, timeout=60)  # type: ignore[arg-type]
        finally:
            server.shutdown()
            thread.join()


def answer(connection: socket.socket, text: str) -> str:
    with connection:
        connection.sendall(f"{text}\n".encode())
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


def test_a_client_of_the_socket_receives_what_generate_gives(model: runtime_edge.Model) -> None:
    with serving(model) as connect:
        assert answer(connect(), "one two") == model.generate([QUESTION], max_new_tokens=300).text
        refused = answer(connect(), "six " * model.manifest.decoder.max_seq_len)
    assert refused.startswith("error: prompt: expected at most ")


def test_a_client_that_leaves_gives_its_turn_back(model: runtime_edge.Model) -> None:
    with serving(model) as connect:
        for _ in range(3):
            with connect() as connection:
                connection.sendall(b"one two\n")
        assert answer(connect(), "one two") == model.generate([QUESTION], max_new_tokens=300).text


def test_search_ranks_by_similarity(artifact: Callable[..., Path]) -> None:
    path = artifact("sample:tiny-sentence", weights="fp32")
    query = embed_and_search.TEXTS[3]
    found = [scored(line) for line in run("embed_and_search", path, query).splitlines()]
    assert found[0] == (1.0, query)
    with runtime_edge.load(path) as model:
        vectors = model.encode([*embed_and_search.TEXTS, query]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = dict(zip(embed_and_search.TEXTS, vectors[:-1] @ vectors[-1], strict=True))
    assert [text for _, text in found] == sorted(similarities, key=lambda text: -similarities[text])
    np.testing.assert_allclose([score for score, _ in found], sorted(similarities.values(), reverse=True), atol=6e-4)


def test_classify_prints_labels_by_probability(artifact: Callable[..., Path]) -> None:
    path, texts = artifact("sample:tiny-bert-classifier", weights="fp32"), ["the cat", "a dog sat"]
    lines = run("classify", path, *texts).splitlines()
    with runtime_edge.load(path) as model:
        expected = model.classify(texts)
    for line, text, result in zip(lines, texts, expected, strict=True):
        labels = re.findall(r"(\w+) (\d\.\d{3})", line.removeprefix(f"{text}: "))
        assert {label: float(score) for label, score in labels} == {
            label: pytest.approx(score, abs=6e-4) for label, score in result.scores.items()
        }
        assert labels[0][0] == result.label


def test_rerank_prints_the_best_first(tmp_path: Path) -> None:
    path = tiny.write_encoder(tmp_path / "e", labels=("relevance",))
    texts = ["two", "three four five", "six"]
    found = [scored(line) for line in run("rerank", path, "one", *texts).splitlines()]
    with runtime_edge.load(path) as model:
        scores = dict(zip(texts, model.rerank("one", texts).tolist(), strict=True))
    assert [text for _, text in found] == sorted(texts, key=lambda text: -scores[text])
    assert [score for score, _ in found] == [pytest.approx(scores[text], abs=6e-5) for _, text in found]


def test_score_prints_the_likeliest_first(tiny_artifact: Path, model: runtime_edge.Model) -> None:
    texts = ["one two three", "six six six", "two two one"]
    lines = [scored(line) for line in run("score", tiny_artifact, *texts).splitlines()]
    expected = {text: float(np.exp(-model.score(text).mean())) for text in texts}
    assert [line.partition("  (")[0] for _, line in lines] == sorted(texts, key=expected.__getitem__)
    assert [score for score, _ in lines] == [pytest.approx(score, abs=6e-3) for score in sorted(expected.values())]


def test_threads_give_the_answers_of_one_after_the_other(tiny_artifact: Path, model: runtime_edge.Model) -> None:
    alone = [model.generate([{"role": "user", "content": text}], max_new_tokens=40).text for text in threads.PROMPTS]
    assert threads.answers(model, threads.PROMPTS, workers=4) == alone
    printed = run("threads", tiny_artifact)
    assert printed == "".join(f"{text} -> {made.strip()}\n" for text, made in zip(threads.PROMPTS, alone, strict=True))


def test_formats_are_compared(tmp_path: Path) -> None:
    lines = run("quantize_and_compare", "sample:tiny-llama", tmp_path, "fp32", "int8").splitlines()
    found = [re.match(r"(\w+): ([\d.]+) MB, perplexity ([+-][\d.]+) %, goes on with ", line) for line in lines]
    assert [match[1] for match in found if match] == ["fp32", "int8"]
    sizes = {match[1]: float(match[2]) for match in found if match}
    assert sizes["int8"] < 0.5 * sizes["fp32"]
    assert abs(float(found[0][3])) <= 0.1  # type: ignore[index]
    for name, size in sizes.items():
        files = runtime_edge.verify(tmp_path / f"{name}.lepton").files
        assert size == pytest.approx(sum(file.size for file in files) / 1e6, abs=0.06)


def test_formats_that_are_unknown_end_it_with_the_builds_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "examples/quantize_and_compare.py", "sample:tiny-llama", str(tmp_path), "int7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_endpoint_streams_what_generate_gives(model: runtime_edge.Model) -> None:
    pytest.importorskip("fastapi", reason="fastapi is not installed: it is in the extra dev")
    pytest.importorskip("httpx2", reason="httpx2, which FastAPI's TestClient needs, is not installed")
    from fastapi.testclient import TestClient

    from examples import fastapi_endpoint

    with TestClient(fastapi_endpoint.application(model)) as client:
        with client.stream("POST", "/generate", json={"prompt": "one two", "max_new_tokens": 20}) as response:
            pieces = list(response.iter_text())
        expected = model.generate([QUESTION], max_new_tokens=20).text
        assert (response.status_code, "".join(pieces)) == (200, expected)
        refused = client.post("/generate", json={"prompt": "six " * model.manifest.decoder.max_seq_len})
        assert refused.status_code == 422
        assert "expected at most" in refused.json()["detail"]
        assert client.post("/generate", json={"prompt": "one", "max_new_tokens": 0}).status_code == 422


def test_requests_of_the_endpoint_share_the_model(model: runtime_edge.Model) -> None:
    pytest.importorskip("fastapi", reason="fastapi is not installed: it is in the extra dev")
    pytest.importorskip("httpx2", reason="httpx2, which FastAPI's TestClient needs, is not installed")
    from concurrent.futures import ThreadPoolExecutor

    from fastapi.testclient import TestClient

    from examples import fastapi_endpoint

    prompts = ["one two", "three", "four five six", "six"] * 3
    with TestClient(fastapi_endpoint.application(model)) as client, ThreadPoolExecutor(4) as pool:

        def ask(prompt: str) -> str:
            return client.post("/generate", json={"prompt": prompt, "max_new_tokens": 10}).text

        together = list(pool.map(ask, prompts))
    alone = [model.generate([{"role": "user", "content": text}], max_new_tokens=10).text for text in prompts]
    assert together == alone
