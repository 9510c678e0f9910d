"""The verbs of `lepton-edge` on a tiny artifact, each against what the library itself answers."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_edge
from runtime_edge.cli.bench import _fitting, _new_tokens
from runtime_edge.errors import LeptonError


@pytest.fixture
def model(tiny_artifact: Path) -> Any:
    with runtime_edge.load(tiny_artifact) as loaded:
        yield loaded


@pytest.fixture
def copy(tiny_artifact: Path, tmp_path: Path) -> Path:
    """An artifact that a test may damage."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "copy.lepton"))


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_verify(lepton_edge: Callable[..., Any], tiny_artifact: Path) -> None:
    done = lepton_edge("verify", tiny_artifact)
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(r"tiny: ok, 4 files, 0\.4 MB\n", done.out)
    assert json.loads(lepton_edge("verify", tiny_artifact, "--json").out)["ok"] is True


@pytest.mark.parametrize("verb", [["verify"], ["run", "hello"], ["bench"], ["eval", "--text", __file__]])
def test_every_verb_refuses_a_damaged_blob(lepton_edge: Callable[..., Any], copy: Path, verb: list[str]) -> None:
    blob = next((copy / "blobs").iterdir())
    data = bytearray(blob.read_bytes())
    data[100] ^= 1
    blob.write_bytes(data)
    done = lepton_edge(verb[0], copy, *verb[1:])
    assert (done.code, done.out) == (1, "")
    assert f"error: blobs/{blob.name}: expected sha256 {blob.name}, found " in done.err
    assert "hint: the artifact is damaged" in done.err


def test_inspect(lepton_edge: Callable[..., Any], tiny_artifact: Path) -> None:
    rows = dict(re.findall(r"^(\S+(?: \S+)*) {2,}(.+)$", lepton_edge("inspect", tiny_artifact).out, re.M))
    assert rows["task"] == "text-generation"
    assert rows["variant cpu"] == "cpu, onnxruntime, weights fp32, activations none, 0.4 MB of weights"
    assert rows["context"] == "2,048 tokens"
    assert rows["cache"] == "2 layers of float32, 0.5 KiB a token"  # 2 layers x 2 heads x (16 + 16) x 4 bytes
    assert rows["chat template"] == "yes"


def with_report(artifact: Path, text: str) -> None:
    (artifact / "report.json").write_text(text)
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["report"] = "report.json"
    manifest["files"].append({"path": "report.json", "size": 0, "sha256": "0" * 64})
    (artifact / "manifest.json").write_text(json.dumps(manifest))


def test_inspect_shows_every_figure_of_the_report(lepton_edge: Callable[..., Any], copy: Path) -> None:
    report = {
        "logits": {"max": 0.00012345678},
        "operations": {"Add": 3, "MatMul": 1200},
        "layers": [{"name": "a"}],
        "heads": [4, 4, 4],
        "list": [1, 2],
        "warnings": ["a head is not tied", "beams are not searched"],
    }
    with_report(copy, json.dumps(report))
    out = lepton_edge("inspect", copy).out
    expected = {
        "logits max": "0.000123457",
        "operations": "MatMul 1,200, Add 3",
        "layers 0 name": "a",
        "heads": "4 (3 times)",
        "list": "[1, 2]",
    }
    for name, value in expected.items():
        assert re.search(rf"^{name} +{re.escape(value)}$", out, re.M), name
    assert re.findall(r"^warning +(.+)$", out, re.M) == report["warnings"]
    assert out.count("a head is not tied") == 1
    assert json.loads(lepton_edge("inspect", copy, "--json").out)["report"] == report


def test_inspect_shows_the_structure(lepton_edge: Callable[..., Any], copy: Path) -> None:
    report = {
        "structure": {"residual": 64, "heads": [4, 2], "kv_heads": [2, 1], "mlp_channels": [160, 80], "layers": 2},
        "pruning": {"asked": "25%", "method": "wanda", "blocks": {"layers.1/mlp": "80 of 160 channels"}},
    }
    with_report(copy, json.dumps(report))
    out = lepton_edge("inspect", copy, "--structure").out
    assert re.search(r"^layer 0 +heads +4 +groups +2 +channels +160 +#{32}$", out, re.M)
    assert re.search(r"^layer 1 +heads +2 +groups +1 +channels +80 +#{16}$", out, re.M)
    assert re.search(r"^layers.1/mlp +80 of 160 channels$", out, re.M)
    assert json.loads(lepton_edge("inspect", copy, "--structure", "--json").out) == report
    (copy / "report.json").write_text("{}")
    assert "not in the report" in lepton_edge("inspect", copy, "--structure").out


def test_inspect_follows_no_link_and_no_other_name(lepton_edge: Callable[..., Any], copy: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    with_report(copy, "")
    (copy / "report.json").unlink()
    (copy / "report.json").symlink_to(tmp_path / "secret.json")
    assert "secret" not in lepton_edge("inspect", copy, "--json").out
    text = (copy / "manifest.json").read_text().replace("report.json", "../secret.json")
    (copy / "manifest.json").write_text(text)
    assert 'secret"' not in lepton_edge("inspect", copy, "--json").out.replace("../secret.json", "")


def test_a_report_that_is_not_json(lepton_edge: Callable[..., Any], copy: Path) -> None:
    with_report(copy, "{")
    done = lepton_edge("inspect", copy)
    assert done.code == 1
    assert "error: report.json: expected a JSON object" in done.err


def test_run_streams_what_generate_gives(lepton_edge: Callable[..., Any], tiny_artifact: Path, model: Any) -> None:
    expected = model.generate([{"role": "user", "content": "hello"}], max_new_tokens=12)
    done = lepton_edge("run", tiny_artifact, "hello", "--max-new-tokens", "12")
    assert done.code == 0
    assert done.out == expected.text + "\n"
    assert re.fullmatch(r"\[prompt \d+ tokens, \d+ tok/s; answer 12 tokens, \d+ tok/s; length\]\n", done.err)


def test_run_with_drafts_says_the_same(lepton_edge: Callable[..., Any], tiny_artifact: Path, model: Any) -> None:
    plain = lepton_edge("run", tiny_artifact, "hello", "--max-new-tokens", "300")
    assert lepton_edge("run", tiny_artifact, "hello", "--max-new-tokens", "300", "--no-drafts").out == plain.out
    done = lepton_edge("run", tiny_artifact, "hello", "--max-new-tokens", "300", "--drafts")
    assert done.out == plain.out
    found = re.fullmatch(r"\[prompt .*; answer 300 tokens, \d+ tok/s; drafts (\d+) of (\d+); length\]\n", done.err)
    assert found is not None
    assert 0 < int(found[1]) <= int(found[2])


def test_run_raw_leaves_the_template_out(lepton_edge: Callable[..., Any], tiny_artifact: Path, model: Any) -> None:
    done = lepton_edge("run", tiny_artifact, "hello", "--raw", "--max-new-tokens", "12")
    assert done.out == model.generate("hello", max_new_tokens=12).text + "\n"


def test_run_json_and_every_option(lepton_edge: Callable[..., Any], tiny_artifact: Path, model: Any) -> None:
    sampling = {
        "max_new_tokens": 20,
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "seed": 7,
        "stop": ("zq",),
    }
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    expected = model.generate(messages, **sampling)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sampling.items() if name != "stop"]
    done = lepton_edge("run", tiny_artifact, "hello", "--system", "be brief", *options, "--stop", "zq", "--json")
    found = json.loads(done.out)
    assert done.err == ""
    assert (found["text"], found["token_ids"]) == (expected.text, expected.token_ids)
    assert found["stats"]["new_tokens"] == len(expected.token_ids)
    assert found["stats"]["decode_tok_s"] > 0


class Unread(io.StringIO):
    """A stdin that must not be read."""

    def read(self, size: int | None = -1, /) -> str:
        raise AssertionError("stdin was read")


def test_run_says_first_that_there_is_no_artifact(
    lepton_edge: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Unread())
    for path, more in ((tmp_path, ()), (tmp_path / "absent", ()), (Path(__file__), ()), (tmp_path, ("--raw",))):
        done = lepton_edge("run", path, *more)
        assert (done.code, done.out) == (1, ""), done.err
        assert f"{path}" in done.err


def test_version(lepton_edge: Callable[..., Any], leptonc: Callable[..., Any]) -> None:
    for program, name in ((lepton_edge, "lepton-edge"), (leptonc, "leptonc")):
        done = program("--version")
        assert (done.code, done.out, done.err) == (0, f"{name} {runtime_edge.__version__}\n", "")


def test_run_reads_the_prompt_from_a_pipe(
    lepton_edge: Callable[..., Any], tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = lepton_edge("run", tiny_artifact, "hello\n", "--max-new-tokens", "9").out
    stdin(monkeypatch, "hello\n")
    assert lepton_edge("run", tiny_artifact, "--max-new-tokens", "9").out == said


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(
    lepton_edge: Callable[..., Any], tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    expected = (1, "", 'error: prompt: expected a text, found an empty one\nhint: give it as in: run ART "PROMPT"\n')
    assert lepton_edge("run", tiny_artifact, prompt) == expected
    stdin(monkeypatch, prompt)
    assert lepton_edge("run", tiny_artifact) == expected


def test_a_prompt_that_is_too_long(lepton_edge: Callable[..., Any], tiny_artifact: Path) -> None:
    done = lepton_edge("run", tiny_artifact, "x" * 3000)
    assert (done.code, done.out) == (1, "")
    assert "error: prompt: expected at most 2048 tokens (max_seq_len), found 30" in done.err
    assert "hint: shorten it by" in done.err


def test_a_model_without_a_template(
    lepton_edge: Callable[..., Any], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["tokenizer"]["chat_template"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    raw = lepton_edge("run", copy, "hello", "--raw", "--max-new-tokens", "5").out
    assert lepton_edge("run", copy, "hello", "--max-new-tokens", "5").out == raw
    done = lepton_edge("run", copy, "hello", "--system", "be brief")
    assert done.code == 1
    assert "expected a model with a chat template, found none" in done.err
    terminal = io.StringIO("hello\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert lepton_edge("run", copy).code == 1  # a chat says so before it asks anything


def test_a_chat_remembers_and_resets(
    lepton_edge: Callable[..., Any], tiny_artifact: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO("one\n\ntwo\n/reset\none\n/exit\nnever\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    first = model.generate([{"role": "user", "content": "one"}], max_new_tokens=6).text
    history = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    second = model.generate(history, max_new_tokens=6).text
    done = lepton_edge("run", tiny_artifact, "--max-new-tokens", "6")
    assert done.code == 0
    assert done.out == f"{first}\n{second}\n{first}\n"
    assert done.err.count("> ") == 6


def test_a_chat_ends_with_its_input(
    lepton_edge: Callable[..., Any], tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO("")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert lepton_edge("run", tiny_artifact).code == 0
    monkeypatch.setattr(sys, "stdin", terminal)
    assert lepton_edge("run", tiny_artifact, "--json").code == 2


def test_options_from_the_environment(
    lepton_edge: Callable[..., Any], tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEPTON_RUN_MAX_NEW_TOKENS", "3")
    assert "answer 3 tokens" in lepton_edge("run", tiny_artifact, "hello").err


def test_eval_is_the_mean_of_the_scores(
    lepton_edge: Callable[..., Any], tiny_artifact: Path, model: Any, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    token_ids = model.tokenize(text.read_text())
    whole = model.score(token_ids)
    found = json.loads(lepton_edge("eval", tiny_artifact, "--text", text, "--window", "1024", "--json").out)
    assert found["tokens"] == len(token_ids) - 1
    assert found["perplexity"] == pytest.approx(math.exp(-float(np.mean(whole, dtype=np.float64))), rel=1e-6)
    lead, rest = token_ids[:1], token_ids[1:]  # what comes before every text comes first in each window
    assert lead == model.tokenize("")
    parts = [model.score([*lead, *rest[start : start + 99]]) for start in range(0, len(rest), 99)]
    out = lepton_edge("eval", tiny_artifact, "--text", text, "--window", "100").out
    expected = math.exp(-float(np.mean(np.concatenate(parts), dtype=np.float64)))
    assert float(re.search(r"^perplexity +([\d.]+)$", out, re.M)[1]) == pytest.approx(expected, rel=1e-4)  # type: ignore[index]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a text file in UTF-8, found: [Errno 2]"),
        (b"\xff\xfe\x00", "expected a text file in UTF-8, found: 'utf-8' codec"),
        (b"", "expected at least 2 tokens, found 1"),
    ],
)
def test_eval_texts_that_are_none(
    lepton_edge: Callable[..., Any], tiny_artifact: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    done = lepton_edge("eval", tiny_artifact, "--text", tmp_path / "text")
    assert (done.code, done.out) == (1, "")
    assert message in done.err


def test_eval_with_gaps_between_windows(lepton_edge: Callable[..., Any], tiny_artifact: Path) -> None:
    done = lepton_edge("eval", tiny_artifact, "--text", __file__, "--window", "10", "--stride", "11")
    assert done.code == 2
    assert "--stride: expected at most 9, what a window has room for, found 11: tokens would be lost" in done.err
    many = lepton_edge("eval", tiny_artifact, "--text", __file__, "--window", "10", "--stride", "10")
    assert "expected at most 9" in many.err


@pytest.fixture(scope="module")
def figures(tiny_artifact: Path) -> dict[str, Any]:
    """One run of bench as JSON, in a process of its own."""
    import subprocess

    command = [sys.executable, "-m", "runtime_edge", "bench", str(tiny_artifact), "--json", "--repetitions", "2"]
    command += ["--prompts", "16,64", "--depths", "32", "--new-tokens", "8", "--threads", "1"]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def test_bench_measures_what_it_was_asked_for(figures: dict[str, Any]) -> None:
    assert (figures["model"], figures["threads"], figures["repetitions"]) == ("tiny", 1, 2)
    assert [item["tokens"] for item in figures["prefill"]] == [16, 64]
    assert [item["depth"] for item in figures["decode"]] == [32]
    assert figures["encode"] == []
    for item in (*figures["prefill"], *figures["decode"]):
        low, high = sorted(item["tok_s"]["values"])
        assert 0 < low <= item["tok_s"]["mean"] <= high
        assert item["tok_s"]["deviation"] == pytest.approx((high - low) / math.sqrt(2))
    assert 0 < figures["load_s"]["mean"] < figures["start_s"]["mean"] < 30
    assert 10 < figures["rss_after_load_mb"]["mean"] <= figures["peak_rss_mb"] * 1.01
    assert [line.partition(":")[0] for line in figures["includes"]] == ["start", "load", "prefill", "decode", "memory"]


def test_bench_table_and_markdown(lepton_edge: Callable[..., Any], tiny_artifact: Path) -> None:
    few = ("--repetitions", "2", "--prompts", "8", "--depths", "8", "--new-tokens", "4")
    done = lepton_edge("bench", tiny_artifact, *few)
    assert done.code == 0
    assert re.search(r"^decode at 8 +[\d,.]+ +[\d,.]+ +tok/s$", done.out, re.M)
    assert "- prefill: prompt to first token" in done.out
    assert re.search(r"^load: \d+\.\d\d s\nspeed: ", done.err)
    lines = lepton_edge("bench", tiny_artifact, *few, "--markdown").out.splitlines()
    assert lines[:2] == ["| measurement | mean | ± | |", "| --- | ---: | ---: | --- |"]
    assert all(line.count("|") == 5 for line in lines[:6])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompts", "4,x"], 2, "expected whole numbers above 0 with commas between, found '4,x'"),
        (["--prompts", "0"], 2, "expected whole numbers above 0"),
        (["--prompts", "2049"], 1, "--prompts: expected at most 2048 tokens for this model, found 2049"),
        (["--depths", "2000", "--new-tokens", "64"], 1, "--depths: expected at most 1984 tokens"),
        (["--new-tokens", "4000"], 1, "--new-tokens: expected fewer than the 2048 tokens that this model takes"),
        (["--threads", "0"], 2, "Invalid value for '--threads'"),
    ],
)
def test_bench_refuses(
    lepton_edge: Callable[..., Any], tiny_artifact: Path, arguments: list[str], code: int, message: str
) -> None:
    done = lepton_edge("bench", tiny_artifact, *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


@pytest.mark.parametrize(("longest", "new", "depth"), [(2, 1, 1), (16, 8, 8), (100, 50, 32)])
def test_bench_of_a_short_model_takes_what_fits(longest: int, new: int, depth: int) -> None:
    """No flag is blamed that was not given."""
    assert _new_tokens(None, None, longest) == new
    assert _fitting("--depths", None, (32, 512), longest - new) == (depth,)
    with pytest.raises(LeptonError, match=f"--new-tokens: expected fewer than the {longest} tokens that this model"):
        _new_tokens(longest, None, longest)


def test_bench_of_a_model_of_one_token() -> None:
    with pytest.raises(LeptonError, match="expected a model of at least 2 tokens to measure, found one of 1"):
        _new_tokens(None, None, 1)


def test_what_the_measuring_process_refuses_is_passed_on(lepton_edge: Callable[..., Any], copy: Path) -> None:
    (copy / "cpu.onnx").write_bytes(b"")
    done = lepton_edge("bench", copy)
    assert (done.code, done.out) == (1, "")
    assert re.match(r"error: cpu\.onnx: expected \d+ bytes, found 0\nhint: ", done.err)
