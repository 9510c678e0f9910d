"""The steps after an encoder as they are traced, against the same written out in numpy, and against the library's."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from leptonc.evaluate.sentence import embedded
from leptonc.frontend.sentence import SentenceSteps
from leptonc.sources.base import ComputedTensor, LazyTensor, SentenceModule, SentenceModules
from leptonc.sources.sentence import ACTIVATIONS, POOLING_MODES

WIDTH, LENGTHS, SKIPPED = 6, (7, 3, 5), 2
NAMES = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
POOLED = SentenceModule("Pooling", {"pooling_mode": ["mean"], "include_prompt": True})


def dense(width: int, activation: str = "Tanh", bias: bool = True, residual: bool = False) -> SentenceModule:
    sizes = {"in_features": WIDTH, "out_features": width, "bias": bias}
    return SentenceModule("Dense", {**sizes, "activation_function": activation, "use_residual": residual, **NAMES})


def pooling(*modes: str, include_prompt: bool = True) -> SentenceModule:
    return SentenceModule("Pooling", {"pooling_mode": list(modes), "include_prompt": include_prompt})


TOKENS_TOO = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
CHAINS = [
    *((pooling(mode, include_prompt=included),) for mode in POOLING_MODES for included in (True, False)),
    (pooling(*reversed(POOLING_MODES)),),
    (pooling("max", "cls", include_prompt=False), SentenceModule("Normalize", NAMES)),
    *((POOLED, dense(4, activation)) for activation in ACTIVATIONS),
    (POOLED, dense(4, bias=False), SentenceModule("Normalize", NAMES), SentenceModule("LayerNorm", {"dimension": 4})),
    (POOLED, dense(4, residual=True)),
    (POOLED, dense(WIDTH, residual=True), dense(3, "Identity")),
    (SentenceModule("Normalize", TOKENS_TOO), pooling("mean")),
]


def inputs() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Tokens of texts of several lengths, what is behind their ends large, and the masks."""
    tokens = torch.randn(len(LENGTHS), max(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).long()
    pooled = mask * (torch.arange(max(LENGTHS)) >= SKIPPED).long()
    return torch.where(mask[..., None] == 1, tokens, 9.0), {"attention_mask": mask, "pooling_mask": pooled}


def steps(chain: tuple[SentenceModule, ...]) -> tuple[SentenceSteps, dict[str, LazyTensor]]:
    torch.manual_seed(2)
    module = SentenceSteps(chain)
    weights: dict[str, LazyTensor] = {}
    for name, parameter in module.named_parameters():
        parameter.data = torch.randn_like(parameter)
        array = parameter.detach().numpy()
        weights[f"sentence.{name}"] = ComputedTensor(array.shape, "F32", lambda array=array: array)
    return module, weights


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "-".join(str(step.options)[:40] for step in chain))
def test_traced_steps_are_those_that_judge_them(chain: tuple[SentenceModule, ...]) -> None:
    tokens, masks = inputs()
    module, weights = steps(chain)
    with torch.inference_mode():
        found = module(tokens, masks).numpy()
    modules = SentenceModules(chain)
    wanted = [embedded(tokens[i, :n].numpy(), modules, weights, SKIPPED) for i, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def test_poolings_by_hand() -> None:
    tokens = np.array([[1.0, 2.0], [3.0, -4.0], [5.0, 6.0], [7.0, -8.0]], np.float32)
    wanted = {
        "cls": [3, -4], "max": [7, 6], "mean": [5, -2], "mean_sqrt_len_tokens": [15 / 3**0.5, -6 / 3**0.5],
        "weightedmean": [(2 * 3 + 3 * 5 + 4 * 7) / 9, (2 * -4 + 3 * 6 + 4 * -8) / 9], "lasttoken": [7, -8],
    }  # fmt: skip
    for mode, row in wanted.items():
        modules = SentenceModules((pooling(mode, include_prompt=False),))
        np.testing.assert_allclose(embedded(tokens, modules, {}, 1), row, rtol=1e-6)


def _classes() -> dict[str, Any]:
    import sentence_transformers.base.modules as base
    import sentence_transformers.sentence_transformer.modules as own

    return {
        name: getattr(base, name, None) or getattr(own, name) for name in ("Pooling", "Dense", "LayerNorm", "Normalize")
    }


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed")
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "-".join(str(step.options)[:40] for step in chain))
def test_steps_against_the_library(chain: tuple[SentenceModule, ...]) -> None:
    tokens, masks = inputs()
    module, _ = steps(chain)
    features: dict[str, Any] = {"token_embeddings": tokens, "attention_mask": masks["attention_mask"]}
    features["prompt_length"] = SKIPPED
    for index, step in enumerate(chain):
        options = dict(step.options)
        if step.kind == "Pooling":
            options["embedding_dimension"] = WIDTH
        if step.kind == "Dense":
            options["activation_function"] = getattr(torch.nn, options["activation_function"])()
        theirs = _classes()[step.kind](**options)
        theirs.load_state_dict(module.get_submodule(str(index)).state_dict())
        features = theirs(features)
    with torch.inference_mode():
        found = module(tokens, masks)
    torch.testing.assert_close(found, features["sentence_embedding"].detach(), rtol=0, atol=2e-6)
