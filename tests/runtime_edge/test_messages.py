"""Messages against transformers' `apply_chat_template`, with short forms of the templates of several families."""

from __future__ import annotations

import copy
import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_edge
from runtime_edge.chat import ChatTemplate
from runtime_edge.errors import ChatTemplateError, LeptonError, RequestError
from runtime_edge.messages import MAX_DEPTH, chat, rendered
from tests.runtime_edge import tiny

TEMPLATES = {
    # Text alone, by concatenation: SmolLM2, Qwen2.
    "chatml": """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",  # noqa: E501
    # Tools as JSON, calls as objects: Hermes, Qwen 2.5.
    "hermes": """{%- if tools %}<|im_start|>system
{%- if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{%- endif %}
# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{%- elif message.role == 'assistant' %}
<|im_start|>assistant{% if message.content %}
{{ message.content }}{% endif %}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
<tool_call>{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{%- elif message.role == 'tool' %}
<|im_start|>user
<tool_response>{{ message.content }}</tool_response><|im_end|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}""",
    # Variables of the caller, reasoning that is left out of what was said: Qwen 3, SmolLM3.
    "thinking": """{%- set last = messages | length - 1 %}{% for message in messages %}<|{{ message.role }}|>
{%- set content = message.content if message.content is string else '' %}
{%- if message.reasoning_content is string and (loop.index0 == last or not enable_thinking is defined) %}<think>{{ message.reasoning_content }}</think>{% endif %}
{{ content }}{% if message.name is defined %} ({{ message.name }}){% endif %}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}""",  # noqa: E501
    # Parts of a content: Gemma 3, Llama 3.2 vision, SmolVLM.
    "parts": """{{ bos_token }}{% for message in messages %}<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{% if message['content'] is string %}{{ message['content'] | trim }}{% elif message['content'] is iterable %}{% for item in message['content'] %}{% if item['type'] == 'image' %}<image>{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}""",  # noqa: E501
    # Refuses what it does not know, and wants ids of calls: Mistral.
    "mistral": """{%- for message in messages %}
{%- if message.role == 'user' %}[INST] {{ message.content }} [/INST]
{%- elif message.tool_calls is defined %}[TOOL_CALLS] [{% for call in message.tool_calls %}{{ call.function | tojson }}{% if not call.id is defined or call.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}{{ ', "id": "' + call.id + '"' }}{% endfor %}]
{%- elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}
{%- elif message.role == 'tool' %}[TOOL_RESULTS] {"content": {{ message.content }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]
{%- elif message.role in ('system', 'developer') %}{{ message.content }}
{%- else %}{{ raise_exception('Only user, assistant, system and tool roles are supported!') }}
{%- endif %}
{%- endfor %}""",  # noqa: E501
    # Objects as results, and documents: Llama 3.1, Command R.
    "llama": """{{ bos_token }}{% for document in documents or [] %}<doc>{{ document.title }}: {{ document.text }}</doc>{% endfor %}
{%- if builtin_tools is defined %}Tools: {{ builtin_tools | join(', ') }}{% endif %}
{%- for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{% if 'tool_calls' in message %}{% if not message.tool_calls | length == 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}{% set call = message.tool_calls[0].function %}{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}
{%- elif message.content is mapping or (message.content is iterable and message.content is not string) %}{{ message.content | tojson }}
{%- else %}{{ message.content }}{% endif %}<|eot_id|>{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}""",  # noqa: E501
}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "thermometer", "arguments": {"room": "hall"}}}
USER = {"role": "user", "content": "Is it cold?"}
TOOL = {"type": "function", "function": {"name": "thermometer", "parameters": {"type": "object", "properties": {}}}}
RESULT = {"role": "tool", "content": "12 degrees", "tool_call_id": "abcdefghi"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "No."}, USER],
    "call, content null": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT],
    "call, content absent": [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT],
    "call, content empty": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT],
    "arguments as JSON": [
        USER,
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "t", "arguments": '{"room": "hall"}'}}]},
        RESULT,
    ],
    "no calls": [USER, {"role": "assistant", "content": "No.", "tool_calls": None}, USER],
    "object as result": [USER, {"role": "tool", "content": {"degrees": 12, "exact": True, "more": [None, 1.5]}}],
    "list as result": [USER, {"role": "tool", "content": [1, 2]}],
    "name": [{"role": "user", "name": "Ada", "content": "Hi"}],
    "reasoning": [USER, {"role": "assistant", "content": "No.", "reasoning_content": "Well."}, USER],
    "thinking": [USER, {"role": "assistant", "content": "No.", "thinking": "Well."}],
    "reasoning by its newer name": [USER, {"role": "assistant", "content": "No.", "reasoning": "Well."}],
    "developer": [{"role": "developer", "content": "Be brief."}, USER],
    "unknown role": [{"role": "poet", "content": "Ode"}],
    "further keys": [{"role": "user", "content": "Hi", "timestamp": 17, "extra": {"a": [1]}}],
    "numbers as content": [{"role": "user", "content": 12}],
    "null content alone": [USER, {"role": "assistant", "content": None}],
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "tools": {"tools": [TOOL]},
    "no tools": {"tools": []},
    "documents": {"documents": [{"title": "Cold", "text": "Below ten degrees"}]},
    "not thinking": {"chat_template_kwargs": {"enable_thinking": False}},
    "further variables": {"chat_template_kwargs": {"builtin_tools": ["search", "code"], "bos_token": "<BOS>"}},
    "no answer": {"add_generation_prompt": False},
    "continued": {"continue_final_message": True},
}


def ours(source: str, messages: list[Any], **options: Any) -> str:
    template = ChatTemplate(source, {"bos_token": "<bos>", "eos_token": "<eos>"})
    return rendered(chat(messages, **options), source, lambda values, more: template.render(values, variables=more))


@pytest.fixture(scope="module")
def reference() -> Any:
    pytest.importorskip("transformers", reason="the reference is transformers")
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny.byte_tokenizer(), bos_token="<bos>", eos_token="<eos>")

    def render(source: str, messages: list[Any], **options: Any) -> str:
        given = dict(options)
        more = given.pop("chat_template_kwargs", {})
        given.setdefault("add_generation_prompt", not given.get("continue_final_message"))
        text: str = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **given, **more)
        return text

    return render


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("options", OPTIONS)
def test_as_transformers_renders(family: str, options: str, reference: Any) -> None:
    same = 0
    for name, messages in CONVERSATIONS.items():
        before = copy.deepcopy(messages)
        try:
            expected = reference(TEMPLATES[family], messages, **OPTIONS[options])
        except Exception:  # a template's refusal, or its failure: of any class
            with pytest.raises(LeptonError):
                ours(TEMPLATES[family], messages, **OPTIONS[options])
            continue
        assert ours(TEMPLATES[family], messages, **OPTIONS[options]) == expected, name
        assert messages == before
        same += 1
    assert same >= 3


@pytest.mark.parametrize("family", ["parts", "llama"])
@pytest.mark.parametrize("options", [{}, {"continue_final_message": True}])
def test_parts_go_to_a_template_that_takes_them(family: str, options: dict[str, Any], reference: Any) -> None:
    parts = [{"type": "text", "text": "Is it"}, {"type": "text", "text": " cold? "}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "No, "}]},
    ]
    found = ours(TEMPLATES[family], messages, **options)
    if family == "parts":
        assert found == reference(TEMPLATES[family], messages, **options)
    else:  # it writes lists as JSON, which is for results of tools: the text is what was meant
        assert "Is it\n cold? <|eot_id|>" in found


@pytest.mark.parametrize("family", ["chatml", "hermes", "mistral", "thinking"])
def test_texts_of_parts_are_joined_for_a_template_of_text(family: str) -> None:
    """Transformers fails here, prints the list, or leaves it out."""
    parts = [{"type": "text", "text": "Is it"}, {"type": "text", "text": "cold?"}]
    joined = [{"role": "user", "content": "Is it\ncold?"}]
    assert ours(TEMPLATES[family], [{"role": "user", "content": parts}]) == ours(TEMPLATES[family], joined)
    assert ours(TEMPLATES[family], [{"role": "user", "content": ["Is it", parts[1]]}]) == ours(
        TEMPLATES[family], joined
    )


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "input_audio", "input_audio": {}},
        {"image": "a.png"},
        {"type": "video", "video": "a"},
        {"type": "file", "file": {}},
        {"type": "input_image"},
    ],
)
def test_pictures_and_sounds_are_refused_in_words(part: dict[str, Any]) -> None:
    for family in ("parts", "chatml"):
        with pytest.raises(
            RequestError, match=r"messages\[0\]\.content\[1\]: expected a part of text, found '"
        ) as caught:
            ours(TEMPLATES[family], [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}])
        assert "reads text only" in str(caught.value.hint)


def test_a_part_without_text_is_refused_where_texts_are_joined() -> None:
    with pytest.raises(RequestError, match=r"messages\[0\]\.content\[0\]: expected a part with text, .* found 'call'"):
        ours(TEMPLATES["chatml"], [{"role": "user", "content": [{"type": "call"}]}])


class Role(str, enum.Enum):
    USER = "user"


@dataclass
class Message:
    role: str
    content: str | None = None


class Pydantic:
    """As clients return messages."""

    def model_dump(self) -> dict[str, Any]:
        return {"role": "user", "content": "Is it cold?", "refusal": None}


@pytest.mark.parametrize(
    "message", [{"role": Role.USER, "content": "Is it cold?"}, Message("user", "Is it cold?"), Pydantic()]
)
def test_objects_become_plain(message: Any) -> None:
    assert ours(TEMPLATES["chatml"], [message]) == ours(TEMPLATES["chatml"], [USER])


def test_numbers_of_numpy_become_plain() -> None:
    checked = chat([USER], chat_template_kwargs={"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(False)})
    given = [checked.variables[name] for name in "abc"]
    assert given == [0.5, 3, False]
    assert [type(value) for value in given] == [float, int, bool]


def nested(depth: int) -> Any:
    value: Any = "a"
    for _ in range(depth):
        value = [value]
    return value


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
REFUSED: list[tuple[list[Any], dict[str, Any], str]] = [
    ([], {}, "messages: expected at least one, found none"),
    ([7], {}, r"messages\[0\]: expected a dict with role and content, found int"),
    ([{"content": "a"}], {}, r"messages\[0\]\.role: expected text, found NoneType"),
    ([{"role": "user", "text": "a"}], {}, r"messages\[0\]\.content: expected what the user says, found none"),
    ([{"role": "user", "content": b"a"}], {}, r"messages\[0\]\.content: expected plain data .*, found bytes"),
    ([{"role": "user", "content": "\ud800"}], {}, r"messages\[0\]\.content: expected Unicode text, found a lone surr"),
    ([{"role": "user", "content": "a", 3: 4}], {}, r"messages\[0\]: expected keys that are text, found int"),
    ([{"role": "user", "content": "a", "n": 2**63}], {}, "expected a whole number of 64 bits, found a larger"),
    ([{"role": "user", "content": "a", "n": float("inf")}], {}, "expected a finite number, found inf"),
    ([{"role": "user", "content": [{"type": "text"}]}], {}, r"content\[0\]\.text: expected text, found NoneType"),
    ([{"role": "user", "content": "a", "n": nested(MAX_DEPTH + 1)}], {}, f"expected at most {MAX_DEPTH} levels"),
    ([{"role": "user", "content": "a", "n": CYCLE}], {}, f"expected at most {MAX_DEPTH} levels"),
    ([{"role": "user", "content": "a", "n": [0] * 10**5}], {}, "expected at most 100000 values"),
    ([USER], {"tools": "search"}, "tools: expected a list of dicts, found str"),
    ([USER], {"tools": {"a": 1}}, "tools: expected a list of dicts, found dict"),
    ([USER], {"tools": [len]}, r"tools\[0\]: expected a dict, found builtin_function_or_method"),
    ([USER], {"tools": [{"a": print}]}, r"tools\[0\]\.a: expected plain data"),
    ([USER], {"documents": ["a"]}, r"documents\[0\]: expected a dict, found str"),
    ([USER], {"chat_template": 3}, "chat_template: expected a template's name, found int"),
    ([USER], {"chat_template_kwargs": [1]}, "chat_template_kwargs: expected a dict, found list"),
    ([USER], {"chat_template_kwargs": {"f": print}}, r"chat_template_kwargs\.f: expected plain data"),
    ([USER], {"chat_template_kwargs": {"messages": []}}, "expected 'messages' as an option of its own"),
    ([USER], {"add_generation_prompt": "yes"}, "add_generation_prompt: expected a bool, found str"),
    ([USER], {"add_generation_prompt": True, "continue_final_message": True}, "expected add_generation_prompt=False"),
    ([USER], {"continue_final_message": 1.0}, "continue_final_message: expected True, False or a field's name"),
    ([USER], {"continue_final_message": "reasoning_content"}, "expected what to go on from, found none"),
    ([{**USER, "x": "a"}], {"continue_final_message": "x"}, "expected a field that the chat template reads, found 'x'"),
    ([{**USER, "content": 5}], {"continue_final_message": True}, "expected text in the last message, found none"),
]


@pytest.mark.parametrize(("messages", "options", "message"), REFUSED)
def test_what_is_no_plain_data_is_refused(messages: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ours(TEMPLATES["chatml"], messages, **options)


def test_a_last_message_that_the_template_cuts_cannot_be_continued() -> None:
    with pytest.raises(ChatTemplateError, match="expected a template that renders the whole last message"):
        ours("{{ messages[-1].content[:3] }}", [USER], continue_final_message=True)


def test_messages_of_the_model(model: runtime_edge.Model) -> None:
    ids = model.tokenize([USER], add_generation_prompt=False)
    assert model.detokenize(ids, skip_special_tokens=False) == "<bos><|turn|>user\nIs it cold?"
    assert model.tokenize([USER], chat_template="default") == model.tokenize([USER])
    made = model.generate([USER, {"role": "assistant", "content": "No"}], max_new_tokens=3, continue_final_message=True)
    assert (made.stats.prompt_tokens == len("<|turn|>") and made.stats.prompt_tokens) or made.stats.prompt_tokens > 0
    with pytest.raises(RequestError, match="chat_template: expected one of default, found 'tool_use'"):
        model.tokenize([USER], chat_template="tool_use")


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [TOOL]}, {"documents": []}, {"chat_template": "default"}, {"chat_template_kwargs": {}},
        {"add_generation_prompt": False}, {"continue_final_message": True},
    ],
)  # fmt: skip
def test_options_of_messages_with_another_prompt_are_refused(
    model: runtime_edge.Model, options: dict[str, Any]
) -> None:
    name = next(iter(options))
    for call in (model.generate, model.stream, model.score):
        with pytest.raises(RequestError, match=f"{name}: expected it with chat messages, found a prompt of text"):
            call("Hello", **options)
    with pytest.raises(RequestError, match=f"{name}: expected it with chat messages, found a prompt of token ids"):
        model.generate([1, 2], **options)
    with pytest.raises(RequestError, match=f"{name}: expected it with chat messages, found a prompt of text"):
        model.tokenize("Hello", **options)
    assert model.tokenize("a", continue_final_message=False) == model.tokenize("a")


def named(root: Path, templates: dict[str, str]) -> Path:
    """The tiny decoder with templates of these names."""
    write = tiny.write

    def changed(root: Path, fields: dict[str, Any], files: dict[str, bytes]) -> Path:
        files = {path: data for path, data in files.items() if path != "chat_template.jinja"}
        paths = {name: f"chat_template.{name}.jinja" for name in templates}
        record = {key: value for key, value in fields["tokenizer"].items() if key != "chat_template"}
        if "default" in paths:
            paths.pop("default")
            record["chat_template"] = "chat_template.jinja"
            files["chat_template.jinja"] = templates["default"].encode()
        record["chat_templates"] = paths
        files |= {path: templates[name].encode() for name, path in paths.items()}
        return write(root, {**fields, "tokenizer": record}, files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "write", changed)
        return tiny.write_decoder(root)


def test_templates_by_name_as_transformers_chooses_them(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the reference is transformers")
    from transformers import PreTrainedTokenizerFast

    sources = {name: f"{name}: {{{{ messages[0].content }}}}" for name in ("default", "tool_use", "rag")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny.byte_tokenizer(), chat_template=sources)
    with runtime_edge.load(named(tmp_path, sources), threads=1) as model:
        for options in ({}, {"tools": []}, {"tools": [TOOL]}, {"chat_template": "rag"}, {"chat_template": "rag", "tools": [TOOL]}):  # fmt: skip # noqa: E501
            expected = tokenizer.apply_chat_template([USER], tokenize=False, **options)
            assert model.detokenize(model.tokenize([USER], **options)) == expected


def test_templates_without_a_default(tmp_path: Path) -> None:
    with runtime_edge.load(named(tmp_path, {"tool_use": "{{ messages[0].content }}", "rag": "b"}), threads=1) as model:
        with pytest.raises(ChatTemplateError, match="expected a default chat template, found only rag, tool_use"):
            model.tokenize([USER])
        assert model.detokenize(model.tokenize([USER], tools=[TOOL])) == "Is it cold?"
