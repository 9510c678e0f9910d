"""A made-up task of two parts: an encoder reads a question, and a decoder writes over what it made.

All that the compiler needs of it is this file; `tests.runtime_edge.pair_room` is all that the runtime needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from leptonc.frontend.interface import VALUES, Interface, PartForm
from leptonc.frontend.patches import Recorder
from leptonc.frontend.tasks.base import Task
from leptonc.sources import open_source
from leptonc.sources.base import SentenceModules, Source
from runtime_edge import part_record as roles
from runtime_edge.part_record import Part, Port

WIDTH, ANSWER = 32, ("batch", "answer")
IDS = Port(name="input_ids", role=roles.TOKEN_IDS, dtype="int64", dims=("batch", "length"))
MASK = Port(name="attention_mask", role=roles.ATTENTION_MASK, dtype="int64", dims=("batch", "length"))
HIDDEN = Port(name="hidden", role=roles.HIDDEN_STATES, dtype="float32", dims=("batch", "length", WIDTH))
WRITTEN = Port(name="decoder_input_ids", role=roles.TOKEN_IDS, dtype="int64", dims=ANSWER)
READ = Port(
    name="encoder_hidden", role=roles.HIDDEN_STATES, dtype="float32", dims=("batch", "length", WIDTH),
    source="encoder/hidden",
)  # fmt: skip
LOGITS = Port(name="logits", role=roles.NEXT_TOKEN_LOGITS, dtype="float32", dims=(*ANSWER, "vocabulary"))


class PairConfig(transformers.PretrainedConfig):
    model_type = "pair"

    def __init__(self, vocab_size: int = 64, **rest: Any) -> None:
        self.vocab_size, self.max_position_embeddings = vocab_size, 64
        self.bert = {
            "vocab_size": vocab_size, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 64, "type_vocab_size": 1,
        }  # fmt: skip
        super().__init__(**rest)


class Reading(nn.Module):
    """A layer of the decoder: what is written looks at what was read, and a feed-forward follows."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        scores = torch.matmul(self.query(x), self.key(hidden).transpose(-1, -2)) * WIDTH**-0.5
        x = x + torch.matmul(torch.softmax(scores, -1), self.value(hidden))
        result: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return result


class PairForAnswers(transformers.PreTrainedModel):
    config_class = PairConfig

    def __init__(self, config: PairConfig) -> None:
        super().__init__(config)
        bert = transformers.BertConfig(**config.bert)
        bert._attn_implementation = config._attn_implementation
        self.encoder = transformers.BertModel(bert, add_pooling_layer=False)
        self.embedding = nn.Embedding(config.vocab_size, WIDTH)
        self.layers = nn.ModuleList([Reading(), Reading()])
        self.head = nn.Linear(WIDTH, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        self.encoder._init_weights(module)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        return hidden

    def decode(self, decoder_input_ids: Tensor, encoder_hidden: Tensor) -> Tensor:
        x = self.embedding(decoder_input_ids)
        for layer in self.layers:
            x = layer(x, encoder_hidden)
        logits: Tensor = self.head(x)
        return logits


class Answers(Task):
    name = "answers"
    auto_class = "AutoModelForSeq2SeqLM"

    @classmethod
    def claim(cls, architecture: str, config: Mapping[str, Any], modules: SentenceModules | None) -> Task | None:
        return cls() if architecture == "PairForAnswers" else None

    def interface(self, config: Any) -> Interface:
        parts = {
            "encoder": PartForm(inputs=(IDS, MASK), outputs=(HIDDEN,)),
            "decoder": PartForm(inputs=(WRITTEN, READ), outputs=(LOGITS,)),
        }
        return Interface(parts, VALUES)

    def run(self, part: str, model: Any, recorder: Recorder | None, args: Mapping[str, Tensor]) -> Any:
        return model.encode(**args) if part == "encoder" else model.decode(**args)

    def settings(self, parts: Mapping[str, Part], config: Any, source: Source, max_seq_len: int) -> dict[str, Any]:
        return {"max_seq_len": max_seq_len, "begin": 1}

    def feeds(self, encode: Any, text: str, max_seq_len: int) -> list[dict[str, Any]]:
        ids = np.array([encode(text).ids[:24]]) % 64
        run = {"encoder/input_ids": ids, "encoder/attention_mask": np.ones_like(ids)}
        return [{**run, "decoder/decoder_input_ids": ids[:, :count]} for count in (1, 5)]


def save(folder: Path, seed: int = 0) -> PairForAnswers:
    """Writes a checkpoint of random weights with a tokenizer of another model; returns the model."""
    torch.manual_seed(seed)
    model = PairForAnswers(PairConfig())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    with open_source("sample:tiny-bert") as source:
        (folder / "tokenizer.json").write_bytes(source.tokenizer_json)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return model.eval()
