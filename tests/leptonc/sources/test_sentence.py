"""sentence-transformers directories: which file says what, in the spellings of all versions of that library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from leptonc.errors import InputError
from leptonc.sources import SentenceModules, open_source
from leptonc.sources.base import SentenceModule
from leptonc.sources.sentence import lowered, read_sentence, score_function
from sample_models.export import write_directory

Write = Callable[..., Path]
TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NAMES = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
CROSS_ENCODER = {"model_type": "CrossEncoder"}


def module(kind: str, path: str | None = None, where: str = "sentence_transformers.models") -> dict[str, str]:
    return {"path": f"2_{kind}" if path is None else path, "type": f"{where}.{kind}"}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the JSON files of a directory: `write({"1_Pooling/config.json": {...}}, modules...)`."""

    def run(files: dict[str, Any], *more: dict[str, str], modules: Any = None) -> Path:
        listing = [TRANSFORMER, POOLING, *more] if modules is None else modules
        for name, content in {"modules.json": listing, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        return tmp_path

    return run


def modules_of(directory: Path) -> SentenceModules:
    found = read_sentence(directory)
    assert found is not None
    return found.modules


def test_a_directory_without_modules() -> None:
    assert read_sentence(Path(__file__).parent) is None


def test_modules_that_were_written_read_as_they_were(tmp_path: Path) -> None:
    chain = (
        SentenceModule(
            "Normalize", {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        ),
        SentenceModule("Pooling", {"pooling_mode": ["max", "cls"], "include_prompt": False}),
        SentenceModule("LayerNorm", {"dimension": 128}),
        SentenceModule(
            "Dense",
            {"in_features": 128, "out_features": 8, "bias": False, "activation_function": "GELU", "use_residual": True}
            | NAMES,
        ),
    )
    wanted = SentenceModules(chain, 77, {"a": "b: ", "query": ""}, "query", 6, "dot")
    with open_source("sample:tiny-sentence") as source:
        source.modules = wanted
        assert modules_of(write_directory(source, tmp_path / "a")) == wanted
        source.modules = SentenceModules(max_seq_length=9, prompts={"a": "b"}, pairs=True, score_function="none")
        assert modules_of(write_directory(source, tmp_path / "b")) == source.modules


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode": "cls"}, ["cls"]),
        ({"pooling_mode": ["lasttoken", "weightedmean"]}, ["lasttoken", "weightedmean"]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ["max", "mean"]),
        (
            {
                "pooling_mode_lasttoken": True,
                "pooling_mode_mean_sqrt_len_tokens": True,
                "pooling_mode_cls_token": False,
            },
            ["mean_sqrt_len_tokens", "lasttoken"],
        ),
        ({"word_embedding_dimension": 64}, ["mean"]),
        ({"pooling_mode_cls_token": False}, ["mean"]),
    ],
)
def test_poolings(config: dict[str, Any], modes: list[str], write: Write) -> None:
    (step,) = modules_of(write({"1_Pooling/config.json": config})).chain
    assert step == SentenceModule("Pooling", {"pooling_mode": modes, "include_prompt": True})


def test_the_chain(write: Write) -> None:
    dense = {"in_features": 64, "out_features": 8, "activation_function": "torch.nn.modules.linear.Identity"}
    directory = write(
        {"1_Pooling/config.json": {"include_prompt": False}, "2_Dense/config.json": dense},
        module("Dropout"), module("Dense"), module("Normalize", "3_Normalize", "sentence_transformers.base.modules.n"),
    )  # fmt: skip
    found = read_sentence(directory)
    assert found is not None
    assert found.modules.chain == (
        SentenceModule("Pooling", {"pooling_mode": ["mean"], "include_prompt": False}),
        SentenceModule(
            "Dense",
            {"in_features": 64, "out_features": 8, "bias": True, "activation_function": "Identity"}
            | {"use_residual": False} | NAMES,
        ),
        SentenceModule("Normalize", NAMES),
    )  # fmt: skip
    assert found.folders == {1: directory / "2_Dense"}


@pytest.mark.parametrize(
    ("name", "config", "limit", "lower"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": True}, 128, True),
        ("sentence_roberta_config.json", {"max_seq_length": 9, "do_lower_case": False}, 9, False),
        ("sentence_distilbert_config.json", {"max_seq_length": 9}, 9, False),
        ("sentence_camembert_config.json", {"max_seq_length": 9}, 9, False),
        ("sentence_albert_config.json", {"max_seq_length": 9}, 9, False),
        ("sentence_xlm-roberta_config.json", {"max_seq_length": 9}, 9, False),
        ("sentence_xlnet_config.json", {"max_seq_length": 9}, 9, False),
        ("sentence_bert_config.json", {"max_seq_length": None}, None, False),
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction", "unpad_inputs": None}, None, False),
        ("sentence_bert_config.json", {"max_seq_length": 9, "tokenizer_args": {"model_max_length": 7}}, 7, False),
        (
            "sentence_bert_config.json",
            {"max_seq_length": 9, "processing_kwargs": {"text": {"max_length": 5}}},
            5,
            False,
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}},
            None,
            False,
        ),
        (
            "sentence_bert_config.json",
            {"model_args": {"torch_dtype": "float16", "trust_remote_code": True}},
            None,
            False,
        ),
    ],
)
def test_how_texts_are_read(name: str, config: dict[str, Any], limit: int | None, lower: bool, write: Write) -> None:
    found = read_sentence(write({name: config, "1_Pooling/config.json": {}}))
    assert found is not None
    assert (found.modules.max_seq_length, found.config.max_length, found.config.lower_case) == (limit, limit, lower)


def test_an_encoder_in_a_folder(write: Write) -> None:
    directory = write(
        {"0_Transformer/sentence_bert_config.json": {"max_seq_length": 5}, "1_Pooling/config.json": {}},
        modules=[TRANSFORMER | {"path": "0_Transformer"}, POOLING],
    )
    found = read_sentence(directory)
    assert found is not None
    assert (found.transformer, found.modules.max_seq_length) == (directory / "0_Transformer", 5)


@pytest.mark.parametrize(
    ("settings", "prompts", "default"),
    [
        ({}, {}, None),
        ({"prompts": {"query": "q: ", "document": None}}, {"query": "q: ", "document": ""}, None),
        ({"prompts": {"a": "b"}, "default_prompt_name": "a"}, {"a": "b"}, "a"),
        ({"default_prompt_name": "query"}, {"query": ""}, "query"),
    ],
)
def test_prompts(settings: dict[str, Any], prompts: dict[str, str], default: str | None, write: Write) -> None:
    found = modules_of(write({"config_sentence_transformers.json": settings, "1_Pooling/config.json": {}}))
    assert (found.prompts, found.default_prompt) == (prompts, default)


def test_a_cross_encoder(write: Write) -> None:
    task = {"transformer_task": "sequence-classification"}
    activation = {
        "activation_fn": "torch.nn.modules.linear.Identity",
        "default_prompt_name": "a",
        "prompts": {"a": "b"},
    }
    files = {"config_sentence_transformers.json": CROSS_ENCODER | activation, "sentence_bert_config.json": task}
    found = modules_of(write(files, modules=[TRANSFORMER]))
    assert found == SentenceModules(prompts={"a": "b"}, default_prompt="a", pairs=True, score_function="none")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("torch.nn.modules.activation.Sigmoid", "sigmoid"),
        ("torch.nn.Identity", "none"),
        ("my.Identity", ""),
        (None, ""),
    ],
)
def test_score_functions(path: str | None, found: str) -> None:
    assert score_function(path) == found


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        (
            {"1_Pooling/config.json": {"pooling_mode": "other"}},
            (),
            "expected pooling modes of cls, max, .*, found other",
        ),
        (
            {"1_Pooling/config.json": {"include_prompt": 0}},
            (),
            "expected include_prompt to be true or false, found '0'",
        ),
        ({}, (module("Dense", "../../elsewhere"),), "expected paths inside the model"),
        ({}, (module("Dense"),), "expected in_features of a Dense module, found none"),
        ({}, (module("LayerNorm"),), "expected the dimension of a LayerNorm module, found none"),
        ({}, (module("WordWeights"),), "module 'WordWeights' is not supported, expected Transformer, Pooling, Dense"),
        ({}, (module("Router"),), "module 'Router' is not supported"),
        (
            {},
            (module("Pooling", "x", "custom_st"),),
            "expected modules of sentence-transformers, found 'custom_st.Pool",
        ),
        (
            {"2_Dense/config.json": {"in_features": 1, "out_features": 1, "activation_function": "my.Tanh"}},
            (module("Dense"),),
            "expected an activation function of torch.nn, one of Identity, .*, found 'my.Tanh'",
        ),
        (
            {"2_Normalize/config.json": {"module_input_name": "other"}},
            (module("Normalize"),),
            "expected Normalize to read one of sentence_embedding, token_embeddings, found 'other'",
        ),
        ({"config_sentence_transformers.json": {"model_type": "SparseEncoder"}}, (), "found a SparseEncoder"),
        ({"config_sentence_transformers.json": {"prompts": ["a"]}}, (), "expected `prompts` to be texts by name"),
        (
            {"config_sentence_transformers.json": {"truncate_dim": 0}},
            (),
            "expected truncate_dim to be a positive integer",
        ),
        (
            {"config_sentence_transformers.json": {"prompts": {"a": "b"}, "default_prompt_name": "c"}},
            (),
            r"expected default_prompt_name to be one of its prompts \('a'\), found 'c'",
        ),
        (
            {"config_sentence_transformers.json": {"prompts": {str(i): "" for i in range(1025)}}},
            (),
            "expected at most 1,024 prompts of at most 65,536 characters",
        ),
        ({"sentence_bert_config.json": {"max_seq_length": 0}}, (), "expected max_seq_length to be a positive integer"),
        (
            {"sentence_bert_config.json": {"max_seq_length": True}},
            (),
            "expected max_seq_length to be a positive integer",
        ),
        ({"sentence_bert_config.json": {"do_lower_case": "yes"}}, (), "expected do_lower_case to be true or false"),
        ({"sentence_bert_config.json": {"query_length": 5}}, (), "expected no query_length, found '5'"),
        ({"sentence_bert_config.json": {"tokenizer_name_or_path": "a/b"}}, (), "expected no tokenizer_name_or_path"),
        (
            {"sentence_bert_config.json": {"new_option": 5}},
            (),
            "expected what sentence-transformers saves, found 'new_opt",
        ),
        (
            {"sentence_bert_config.json": {"transformer_task": "fill-mask"}},
            (),
            "expected transformer_task 'feature-ext",
        ),
        ({"sentence_bert_config.json": {"modality_config": {"message": {}}}}, (), "one that reads chat messages"),
        ({"sentence_bert_config.json": {"modality_config": {"image": {}}}}, (), "to take text and last_hidden_state"),
        (
            {"sentence_bert_config.json": {"model_args": {"quantization_config": {}}}},
            (),
            "model_kwargs: expected options",
        ),
        ({"sentence_bert_config.json": {"model_args": []}}, (), "expected model_kwargs to be options by name"),
        (
            {"sentence_bert_config.json": {"processing_kwargs": {"image": {"a": 1}}}},
            (),
            "processing_kwargs: expected opt",
        ),
        (
            {"sentence_bert_config.json": {"processing_kwargs": {"text": {"padding": "max_length"}}}},
            (),
            "expected padding to be one of",
        ),
    ],
)
def test_what_is_refused(files: dict[str, Any], more: tuple[dict[str, str], ...], message: str, write: Write) -> None:
    with pytest.raises(InputError, match=message):
        read_sentence(write({"1_Pooling/config.json": {}, **files}, *more))


@pytest.mark.parametrize(
    ("modules", "settings", "message"),
    [
        ([], {}, "expected a Transformer as the first module, found none"),
        ([module("StaticEmbedding", "")], {}, "first module, found StaticEmbedding"),
        ([TRANSFORMER], {}, "expected a Pooling module, found none"),
        ([{"path": ""}], {}, "expected modules of sentence-transformers, found 'None'"),
        (
            [{"path": 3, "type": "sentence_transformers.models.Transformer"}],
            {},
            "expected a path of a module, found '3'",
        ),
        (
            [TRANSFORMER],
            CROSS_ENCODER,
            "expected transformer_task 'sequence-classification', found 'feature-extraction'",
        ),
    ],
)
def test_lists_of_modules_that_are_refused(
    modules: list[Any], settings: dict[str, Any], message: str, write: Write
) -> None:
    with pytest.raises(InputError, match=message):
        read_sentence(write({"config_sentence_transformers.json": settings}, modules=modules))


def test_a_cross_encoder_with_more_modules(write: Write) -> None:
    task = {"sentence_bert_config.json": {"transformer_task": "sequence-classification"}}
    with pytest.raises(InputError, match="expected a CrossEncoder of a Transformer alone, found Pooling too"):
        read_sentence(write({"config_sentence_transformers.json": CROSS_ENCODER, "1_Pooling/config.json": {}, **task}))


def test_weights_that_are_pickled(tmp_path: Path) -> None:
    model = write_directory(open_source("sample:tiny-sentence"), tmp_path / "m")
    listing = json.loads((model / "modules.json").read_text())
    (model / "modules.json").write_text(json.dumps([*listing, module("LayerNorm", "9_LayerNorm")]))
    (model / "9_LayerNorm").mkdir()
    (model / "9_LayerNorm" / "config.json").write_text('{"dimension": 64}')
    (model / "9_LayerNorm" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"9_LayerNorm: expected safetensors weights, found pytorch_model.bin"):
        open_source(str(model))


LOWER = {"type": "Lowercase"}
NFC = {"type": "NFC"}


@pytest.mark.parametrize(
    ("normalizer", "wanted"),
    [
        (None, [LOWER]),
        (NFC, [LOWER, NFC]),
        ({"type": "Sequence", "normalizers": [NFC]}, [LOWER, NFC]),
        ({"type": "Sequence", "normalizers": [NFC, LOWER]}, [NFC, LOWER]),
        (LOWER, None),
    ],
)
def test_lower_case_comes_first(normalizer: Any, wanted: list[Any] | None) -> None:
    with open_source("sample:tiny-sentence") as source:
        document = json.loads(source.tokenizer_json) | {"normalizer": normalizer}
    found = lowered(json.dumps(document).encode())
    want = normalizer if wanted is None else {"type": "Sequence", "normalizers": wanted}
    assert json.loads(found)["normalizer"] == want
    tokenizer = Tokenizer.from_buffer(found)
    assert tokenizer.encode("HELLO World").ids == tokenizer.encode("hello world").ids


def test_a_folder_of_the_encoder_that_is_not_there(tmp_path: Path) -> None:
    model = write_directory(open_source("sample:tiny-sentence"), tmp_path / "m")
    first, *others = json.loads((model / "modules.json").read_text())
    (model / "modules.json").write_text(json.dumps([{**first, "path": " "}, *others]))
    with pytest.raises(InputError, match=r"expected a folder with config\.json, found none") as caught:
        open_source(str(model))
    assert caught.value.hint is not None
