"""`run` with a conversation from a file, tools, variables of a template, a deadline; and options without effect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from tests.runtime_edge import tiny

MESSAGES = [
    {"role": "user", "content": "Is it cold?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "thermometer", "arguments": {}}}]},
    {"role": "tool", "content": "12 degrees"},
]
TEMPLATE = """{% for tool in tools or [] %}{{ tool.name }};{% endfor %}{% if loud is true %}LOUD{{ who }}{% endif %}
{%- for message in messages %}{{ message.role }}:{{ message.content }}
{%- for call in message.tool_calls or [] %}{{ call.function.name }}{% endfor %}|{% endfor %}"""


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "TEMPLATE", TEMPLATE)
        return tiny.write_decoder(tmp_path_factory.mktemp("talker"))


def test_a_conversation_with_tools_from_files(lepton_edge: Callable[..., Any], talker: Path, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(MESSAGES))
    (tmp_path / "t.json").write_text('[{"name": "thermometer"}]')
    options = ["--messages", tmp_path / "m.json", "--tools", tmp_path / "t.json"]
    options += ["--template-variable", "loud=true", "--template-variable", "who=Ada", "--chat-template", "default"]
    done = lepton_edge("run", talker, *options, "--max-new-tokens", 5, "--json")
    prompt = "thermometer;LOUDAdauser:Is it cold?|assistant:thermometer|tool:12 degrees|"
    with runtime_edge.load(talker, threads=1) as model:
        made = json.loads(done.out)
        assert made["stats"]["prompt_tokens"] == len(model.tokenize(prompt, add_special_tokens=False))
        assert made["token_ids"] == model.generate(model.tokenize(prompt, add_special_tokens=False), max_new_tokens=5).token_ids  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--messages", "none.json"], 2, "does not exist"),
        (["--messages", "text.json"], 1, "--messages: expected JSON in text.json, found:"),
        (["--messages", "dict.json"], 1, "--messages: expected a JSON list in dict.json, found dict"),
        (["--messages", "list.json", "hello"], 2, "--messages has the whole conversation"),
        (["hello", "--raw", "--tools", "list.json"], 2, "need what --raw leaves out"),
        (["hello", "--tools", "list.json"], 1, "tools[0]: expected a dict, found int"),
        (["hello", "--template-variable", "loud"], 2, "expected NAME=VALUE, found 'loud'"),
        (["hello", "--template-variable", "messages=1"], 1, "expected 'messages' as an option of its own"),
        (["hello", "--chat-template", "rag"], 1, "chat_template: expected one of default, found 'rag'"),
        (["hello", "--timeout", "0"], 2, "0"),
    ],
)
def test_what_cannot_be_asked(
    lepton_edge: Callable[..., Any], talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, text in (("text", "hello"), ("dict", "{}"), ("list", "[1]")):
        (tmp_path / f"{name}.json").write_text(text)
    done = lepton_edge("run", talker, *options)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_a_deadline_ends_an_answer(lepton_edge: Callable[..., Any], tiny_artifact: Path) -> None:
    done = lepton_edge("run", tiny_artifact, "hello", "--timeout", "0.000001")
    assert (done.code, done.out) == (0, "\n")
    assert "; timeout]" in done.err


def test_an_option_without_effect_is_told(lepton_edge: Callable[..., Any], tiny_artifact: Path) -> None:
    done = lepton_edge("run", tiny_artifact, "hello", "--max-new-tokens", "3", "--top-p", "0.5")
    assert done.code == 0
    assert "warning: top_p: without effect at temperature 0" in done.err
    assert "warning" not in lepton_edge("run", tiny_artifact, "hello", "--max-new-tokens", "3", "--seed", "4").err


@pytest.mark.parametrize("options", [["--temperature", "1"], ["--system", "a"], ["--drafts"], ["--stop", "x"]])
def test_an_encoder_refuses_options_of_answers(
    lepton_edge: Callable[..., Any], tmp_path: Path, options: list[str]
) -> None:
    root = tiny.write_encoder(tmp_path)
    done = lepton_edge("run", root, "one two", *options)
    assert done.code == 1
    assert f"{options[0]}: expected a model for text generation, found one for text-embedding" in done.err
    done = lepton_edge("run", root, "one two", "--timeout", "60")
    assert len(json.loads(done.out)["embedding"]) == 6
